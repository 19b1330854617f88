package pkcs11

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// Module is a loaded library with one login. A [Token] that crypto11 cannot open is
// built on it, and hsm-probe measures it directly. One Module or Token per process.
type Module struct {
	*pkcs11.Ctx
	Slot  uint
	Info  pkcs11.TokenInfo
	Login pkcs11.SessionHandle // stays open and holds the login for all sessions

	native native
}

// Load loads and initializes the library. It returns [hsm.ErrUnavailable] if that fails.
func Load(cfg Config) (*Module, error) {
	m := &Module{Ctx: pkcs11.New(cfg.Module)}
	if m.Ctx == nil {
		return nil, fmt.Errorf("loading %s: %w", cfg.Module, hsm.ErrUnavailable)
	}
	if err := m.Initialize(reserved(cfg.InitArgs)...); err != nil {
		return nil, startError("C_Initialize", err)
	}
	m.native = nativeOf(m.Ctx)
	return m, nil
}

// LogIn selects the token and calls C_Login at most once. It returns [hsm.ErrPIN] if the
// token refuses the PIN, or reports that its PIN is locked or has one try left: then it
// does not try. After any error the module is finalized.
func (m *Module) LogIn(cfg Config) (err error) {
	defer func() {
		if err != nil {
			_ = m.Finalize()
		}
	}()
	if m.Slot, m.Info, err = findToken(m.Ctx, cfg.TokenLabel, cfg.TokenSerial); err != nil {
		return err
	}
	if err := spares(m.Info); err != nil {
		return err
	}
	if m.Login, err = m.Session(); err != nil {
		return startError("C_OpenSession", err)
	}
	if err := m.native.login(m.Login, cfg.PIN); err != nil {
		return startError("C_Login", err)
	}
	return nil
}

// Session opens a read-write session.
func (m *Module) Session() (pkcs11.SessionHandle, error) {
	return m.OpenSession(m.Slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
}

// Functions returns the module's CK_FUNCTION_LIST, for calls that miekg/pkcs11 cannot make.
func (m *Module) Functions() unsafe.Pointer { return unsafe.Pointer(m.native.list) }
