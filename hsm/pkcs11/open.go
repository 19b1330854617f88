package pkcs11

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// reserve is the number of sessions left free below a token's limit: two for crypto11 and
// one that keeps the login.
const reserve = 3

// background is the context of the calls of Open, which last until the process ends.
var background = context.Background()

// Open loads the module, selects the token, logs in once and reads its keys. It may be
// called once per process. It returns [hsm.ErrPIN] if the token refuses the PIN, after
// exactly one C_Login, and [hsm.ErrUnavailable] if the module or token is absent or lacks
// a mechanism that cfg.Require needs.
func Open(cfg Config) (*Token, error) {
	defer cfg.PIN.Zero()
	cfg.defaults()
	t, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", cfg.Module, err)
	}
	return t, nil
}

func open(cfg Config) (*Token, error) {
	t := &Token{
		log: cfg.Logger, hostCheck: cfg.HostCheck, keys: map[hsm.KeyID]object{}, dead: make(chan struct{}),
		settled: allOptional, optional: allOptional,
	}
	info, err := t.logIn(cfg)
	if err != nil {
		return nil, err
	}
	t.label = info.Label
	if err := t.readMechanisms(); err != nil {
		return nil, err
	}
	if err := t.attach(cfg, info); err != nil {
		return nil, err
	}
	// Some modules report success for a login that failed.
	if err := t.loggedIn(); err != nil {
		return nil, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	if err := t.chooseWays(); err != nil {
		return nil, err
	}
	if err := t.checkMechanisms(cfg.Require); err != nil {
		return nil, err
	}
	_, err = t.Keys(background)
	return t, err
}

// logIn initializes the module and logs in, with crypto11 if that is possible.
func (t *Token) logIn(cfg Config) (pkcs11.TokenInfo, error) {
	if cfg.InitArgs != "" { // crypto11 cannot pass them
		return t.openAlone(cfg)
	}
	info, shared, err := findShared(cfg)
	if err == nil {
		err = checkTries(info)
	}
	if err != nil {
		return info, err
	}
	if limit := info.MaxRwSessionCount; !shared || limit != 0 && limit < reserve {
		return t.openAlone(cfg) // crypto11 panics on a token with one session
	}
	if t.keygen, err = login(cfg, info); err != nil {
		return info, err
	}
	if err := t.load(cfg); err != nil {
		return info, err
	}
	t.slot, info, err = findToken(t.ctx, cfg.TokenLabel, cfg.TokenSerial)
	return info, err
}

// openAlone opens the module without crypto11.
func (t *Token) openAlone(cfg Config) (pkcs11.TokenInfo, error) {
	m, err := Load(cfg)
	if err != nil {
		return pkcs11.TokenInfo{}, err
	}
	if err := m.LogIn(cfg); err != nil {
		return m.Info, err
	}
	t.ctx, t.native, t.slot = m.Ctx, m.native, m.Slot
	return m.Info, nil
}

// load opens the library for the request path.
func (t *Token) load(cfg Config) error {
	if t.ctx = pkcs11.New(cfg.Module); t.ctx == nil {
		return loadError(cfg.Module)
	}
	t.native = nativeOf(t.ctx)
	return nil
}

// findToken asks all slots. It returns an error if several tokens match.
func findToken(ctx *pkcs11.Ctx, label, serial string) (slot uint, found pkcs11.TokenInfo, err error) {
	label, serial = unpadded(label), unpadded(serial)
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, found, startError("C_GetSlotList", err)
	}
	matches := 0
	var there []string
	for _, s := range slots {
		info, err := ctx.GetTokenInfo(s)
		if err == nil && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			there = append(there, fmt.Sprintf("%q (serial %s)", info.Label, info.SerialNumber))
		}
		if err != nil || (label == "" && serial == "") ||
			(label != "" && unpadded(info.Label) != label) || (serial != "" && unpadded(info.SerialNumber) != serial) {
			continue
		}
		slot, found = s, info
		matches++
	}
	if matches != 1 {
		return 0, found, fmt.Errorf("%d tokens have label %q and serial %q; the module has %s: %w",
			matches, label, serial, cmp.Or(strings.Join(there, ", "), "no initialized token"), hsm.ErrUnavailable)
	}
	return slot, found, nil
}

// unpadded removes what fills the fixed fields of CK_TOKEN_INFO: blanks by the standard, zeros on
// some tokens.
func unpadded(s string) string { return strings.TrimRight(s, " \x00") }

// checkTries refuses to log in if one more wrong PIN would lock the token, or it is locked
// (PKCS#11 v2.40 §3.2, CK_TOKEN_INFO flags): an earlier caller may not have learned the
// outcome.
func checkTries(info pkcs11.TokenInfo) error {
	if info.Flags&(pkcs11.CKF_USER_PIN_LOCKED|pkcs11.CKF_USER_PIN_FINAL_TRY) == 0 {
		return nil
	}
	return fmt.Errorf("token %s says that its PIN is locked or at its last try, log in once with the vendor's tool: %w", info.Label, hsm.ErrPIN)
}

// attach opens the request path. Its first session keeps the login.
func (t *Token) attach(cfg Config, info pkcs11.TokenInfo) (err error) {
	if t.login, err = t.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
		return startError("C_OpenSession", err)
	}
	n := cfg.Sessions
	if limit := info.MaxRwSessionCount; limit != 0 && limit < uint(n+reserve) {
		n = max(int(limit)-reserve, 1)
	}
	t.sessions = make(chan *session, n)
	for range n {
		t.sessions <- nil
	}
	go t.stayAlive()
	return nil
}

// startError is the error of a function that Open calls. Every error but a refused PIN is
// [hsm.ErrUnavailable].
func startError(function string, err error) error {
	if classify(err) == stop {
		return fmt.Errorf("%s: %v: %w", function, err, hsm.ErrPIN)
	}
	return fmt.Errorf("%s: %v: %w", function, err, hsm.ErrUnavailable)
}

// since returns the age of a session for an error message, zero if there is none.
func (s *session) since() time.Duration {
	if s == nil {
		return 0
	}
	return time.Since(s.opened)
}

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
		return nil, loadError(cfg.Module)
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
	if err := checkTries(m.Info); err != nil {
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

// Ways tries how the module is used, as [Open] does, and returns one sentence for each choice and for
// each mechanism that it lacks or refuses. An error is the module's.
func (m *Module) Ways() (chosen, notices []string, err error) {
	t := &Token{
		ctx: m.Ctx, native: m.native, slot: m.Slot, login: m.Login, label: m.Info.Label,
		settled: allOptional, optional: allOptional,
		log: hclog.NewNullLogger(), keys: map[hsm.KeyID]object{}, dead: make(chan struct{}), sessions: make(chan *session, 1),
	}
	t.sessions <- nil
	for _, step := range []func() error{t.readMechanisms, t.chooseWays, func() error { return t.checkMechanisms(nil) }} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	if s := <-t.sessions; s != nil {
		_ = m.CloseSession(s.handle) // it has nothing that the caller needs
	}
	return t.Ways(), t.Notices(), nil
}

// Functions returns the module's CK_FUNCTION_LIST, for calls that miekg/pkcs11 cannot make.
func (m *Module) Functions() unsafe.Pointer { return unsafe.Pointer(m.native.list) }
