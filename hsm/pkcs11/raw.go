package pkcs11

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// Raw is a module with one login and no contract around it: what package probe
// tries mechanisms and measures with. One Raw or one [Token] per process.
type Raw struct {
	*pkcs11.Ctx
	Slot  uint
	Info  pkcs11.TokenInfo
	Login pkcs11.SessionHandle // holds the login for all sessions

	native native
	loops  loops
}

// Load makes the module ready and logs in nowhere. What is not there is
// [hsm.ErrUnavailable].
func Load(cfg Config) (*Raw, error) {
	r := &Raw{Ctx: pkcs11.New(cfg.Module)}
	if r.Ctx == nil {
		return nil, fmt.Errorf("loading %s: %w", cfg.Module, hsm.ErrUnavailable)
	}
	if err := r.Initialize(reserved(cfg.InitArgs)...); err != nil {
		return nil, startError("C_Initialize", err)
	}
	r.native = nativeOf(r.Ctx)
	r.loops = loopsOf(r.native)
	return r, nil
}

// OpenRaw loads the module, selects the token and logs in, with one C_Login at
// most: a refused PIN is [hsm.ErrPIN]. A token that says its PIN is locked, or at
// its last try, is not given one and is [hsm.ErrPIN] too: a study is not worth it.
func OpenRaw(cfg Config) (*Raw, error) {
	defer cfg.PIN.Zero()
	r, err := Load(cfg)
	if err != nil {
		return nil, err
	}
	if r.Slot, r.Info, err = findToken(r.Ctx, cfg.TokenLabel, cfg.TokenSerial); err != nil {
		return nil, err
	}
	if err := spares(r.Info); err != nil {
		return nil, err
	}
	if r.Login, err = r.Session(); err != nil {
		return nil, startError("C_OpenSession", err)
	}
	// The string shares the bytes of the PIN, which are erased.
	pin := unsafe.String(unsafe.SliceData(cfg.PIN), len(cfg.PIN))
	if err := r.Ctx.Login(r.Login, pkcs11.CKU_USER, pin); err != nil {
		return nil, startError("C_Login", err)
	}
	return r, nil
}

// Session opens a session.
func (r *Raw) Session() (pkcs11.SessionHandle, error) {
	return r.OpenSession(r.Slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
}

// GenerateWrapping is C_GenerateKey of an AES key with CKA_UNWRAP_TEMPLATE, which
// keeps what it unwraps sensitive.
func (r *Raw) GenerateWrapping(s pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return r.native.generateWrapping(s, pkcs11.CKM_AES_KEY_GEN, template)
}

// EncryptData is C_DeriveKey with CKM_AES_ECB_ENCRYPT_DATA: the new key is the
// encryption of data, whole blocks of 16 bytes, under base.
func (r *Raw) EncryptData(s pkcs11.SessionHandle, base pkcs11.ObjectHandle, data []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return r.native.encryptData(s, base, data, template)
}
