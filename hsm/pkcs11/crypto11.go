// This file has all calls of crypto11, for the one reason that users of the appliance
// require that library for logging in and for making key pairs. Where it cannot open a
// module, or make a key, this package does so without it.

package pkcs11

import (
	"crypto/elliptic"
	"fmt"
	"slices"
	"unsafe"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// findShared finds the token before crypto11 does: if the token is absent,
// crypto11.Configure finalizes the module under its caller. shared reports whether
// crypto11 will see the sessions of this package. p11-kit proxies give each caller that
// loads them separate sessions and logins.
func findShared(cfg Config) (info pkcs11.TokenInfo, shared bool, err error) {
	ctx := pkcs11.New(cfg.Module)
	if ctx == nil {
		return info, false, loadError(cfg.Module)
	}
	defer ctx.Destroy()
	if err := ctx.Initialize(); err != nil {
		return info, false, startError("C_Initialize", err)
	}
	defer func() { _ = ctx.Finalize() }() // crypto11 initializes the module
	if _, info, err = findToken(ctx, cfg.TokenLabel, cfg.TokenSerial); err != nil {
		return info, false, err
	}
	again := pkcs11.New(cfg.Module)
	if again == nil {
		return info, false, fmt.Errorf("loading module again: %w", hsm.ErrUnavailable)
	}
	defer again.Destroy()
	if again.Initialize() == nil {
		_ = again.Finalize() // it has its own state
		return info, false, nil
	}
	return info, true, nil
}

// login lets crypto11 initialize the module and log in. A long-term session of crypto11
// holds the login. crypto11 panics on a token with one session.
func login(cfg Config, info pkcs11.TokenInfo) (keygen *crypto11.Context, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("configuring: %v: %w", p, hsm.ErrUnavailable)
		}
	}()
	// The string shares the bytes of the PIN, so that zeroing those leaves no
	// copy on the Go heap; crypto11 keeps the Config, hence the empty string.
	c := crypto11.Config{Path: cfg.Module, Pin: unsafe.String(unsafe.SliceData(cfg.PIN), len(cfg.PIN)), MaxSessions: 2}
	defer func() { c.Pin = "" }()
	if c.TokenSerial = info.SerialNumber; c.TokenSerial == "" {
		c.TokenLabel = info.Label
	}
	if keygen, err = crypto11.Configure(&c); err != nil {
		return nil, startError("C_Login", err)
	}
	return keygen, nil
}

// draftByCrypto11 makes a key pair with crypto11 and finds its handles by its CKA_ID: every session
// of the process sees session objects.
func (t *Token) draftByCrypto11(s *session, p profile, templates pair) (d draft, err error) {
	made, err := t.crypto11(p, templates)
	if err != nil {
		return d, err
	}
	d.end = func(err *error) {
		if gone := made.Delete(); *err == nil {
			*err = at("C_DestroyObject", gone)
		}
	}
	if d.public, err = t.half(s, pkcs11.CKO_PUBLIC_KEY, templates.public); err == nil {
		d.private, err = t.half(s, pkcs11.CKO_PRIVATE_KEY, templates.public)
	}
	if err != nil {
		d.end(&err)
	}
	return d, err
}

// crypto11 makes a key pair. The library panics on some errors of a module.
func (t *Token) crypto11(p profile, templates pair) (made crypto11.Signer, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = at("C_GenerateKeyPair", fmt.Errorf("panic: %v", r))
		}
	}()
	public, private := set(templates.public), set(templates.private)
	switch {
	case p.keyType == pkcs11.CKK_RSA:
		made, err = t.keygen.GenerateRSAKeyPairWithAttributes(public, private, p.bits)
	case slices.Equal(p.params, oidP384):
		made, err = t.keygen.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P384())
	default:
		made, err = t.keygen.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
	}
	return made, at("C_GenerateKeyPair", err)
}

// half finds one half of a pair by CKA_ID and CKA_TOKEN in its template.
func (t *Token) half(s *session, class uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	match := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	for _, a := range template {
		if a.Type == pkcs11.CKA_ID || a.Type == pkcs11.CKA_TOKEN {
			match = append(match, a)
		}
	}
	found, err := t.findAll(s, match)
	if err == nil && len(found) != 1 {
		err = at("C_FindObjects", fmt.Errorf("%d objects are this half of the new key pair", len(found)))
	}
	if err != nil {
		return 0, err
	}
	return found[0], nil
}

func set(list []*pkcs11.Attribute) crypto11.AttributeSet {
	s := crypto11.NewAttributeSet()
	s.AddIfNotPresent(list)
	return s
}
