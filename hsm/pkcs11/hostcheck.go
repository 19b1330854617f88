package pkcs11

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/hostseal"
)

// This file checks passwords in the memory of this process, for a module that cannot unwrap a secret
// to a session key. The wrap key is then an HMAC key, under which [hostseal] seals the verifiers.

// hostNotice says that passwords are not checked inside the token.
const hostNotice = `password verifiers are opened and compared in the memory of hsm-worker: hsm.password_check = "host"`

// hostProfile is the HMAC key in place of a wrap key. CKA_VERIFY distinguishes it from a key for MACs.
var hostProfile = func() profile {
	p := profiles[hsm.MACKey]
	p.allowed = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY}
	return p
}()

// using returns what making and using a key of a usage takes on this token.
func (t *Token) using(u hsm.Usage) capability {
	c := using(u)
	if u == hsm.WrapKey && t.hostCheck {
		c.mechanisms = using(hsm.MACKey).mechanisms
	}
	return c
}

// hinted adds to the error of a module that cannot have wrap keys the setting that does without them.
func (t *Token) hinted(u hsm.Usage, err error) error {
	if err == nil || u != hsm.WrapKey || t.hostCheck {
		return err
	}
	return fmt.Errorf(`%w; hsm.password_check = "host" would check passwords in the memory of hsm-worker, see docs/HSM.md`, err)
}

// onHost reports whether a secret key is an HMAC key in place of a wrap key.
func (t *Token) onHost(s *session, h pkcs11.ObjectHandle, key keyFacts) (bool, error) {
	if key.class != hostProfile.class || !hostProfile.holds(key.keyType) {
		return false, nil
	}
	values, ok, err := t.attributes(s, h, hostProfile.usages...)
	for i, v := range values {
		ok = ok && truth(v) == hostProfile.allows(hostProfile.usages[i])
	}
	return ok, err
}

// seals returns the MAC of a key for [hostseal]. It is an error to use one while hsm.password_check is off.
func (t *Token) seals(s *session, o object) (hostseal.MAC, error) {
	if !t.hostCheck {
		return nil, at("C_SignInit", fmt.Errorf(
			`key %s seals verifiers on the host, for which hsm.password_check = "host" is needed: %w`, o.Label, errLacking))
	}
	return func(data []byte) ([]byte, error) {
		mac, err := t.mac(s, o.handle, data)
		return mac, blamesInput(err)
	}, nil
}

// keep wraps or seals a secret from memory under a wrap key.
func (t *Token) keep(s *session, wrap object, secret []byte) ([]byte, error) {
	if !wrap.host {
		return t.wrap(s, wrap, secret)
	}
	mac, err := t.seals(s, wrap)
	if err != nil {
		return nil, err
	}
	return hostseal.Seal(mac, secret)
}

// openHere opens a secret that is sealed on the host. The caller clears it.
func (t *Token) openHere(s *session, wrap object, sealed []byte) ([]byte, error) {
	mac, err := t.seals(s, wrap)
	if err != nil {
		return nil, err
	}
	secret, err := hostseal.Open(mac, sealed)
	if errors.Is(err, hsm.ErrInput) {
		err = at("unsealing", errWrapped)
	}
	return secret, err
}

// macHere is MACWrapped in the memory of this process.
func (t *Token) macHere(s *session, wrap object, sealed, data []byte) ([]byte, error) {
	secret, err := t.openHere(s, wrap, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	m := hmac.New(sha256.New, secret)
	m.Write(data)
	return m.Sum(nil), nil
}

// rewrapHere moves a secret between two keys of which at least one seals on the host. A secret inside
// the token stays there.
func (t *Token) rewrapHere(s *session, from, to object, old []byte) ([]byte, error) {
	if !from.host {
		return nil, at("C_UnwrapKey", fmt.Errorf(
			"what %s keeps inside the token cannot be sealed on the host by %s: %w", from.Label, to.Label, errLacking))
	}
	secret, err := t.openHere(s, from, old)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return t.keep(s, to, secret)
}
