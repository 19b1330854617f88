package pkcs11

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// mechanisms has the codes of the mechanisms that package hsm names, and of those that
// wrap and derive secrets.
var mechanisms = map[string]uint{
	"CKM_EC_KEY_PAIR_GEN": pkcs11.CKM_EC_KEY_PAIR_GEN, "CKM_ECDSA": pkcs11.CKM_ECDSA, "CKM_ECDH1_DERIVE": pkcs11.CKM_ECDH1_DERIVE,
	"CKM_EC_EDWARDS_KEY_PAIR_GEN": ckmECEdwardsKeyGen, "CKM_EDDSA": ckmEdDSA,
	"CKM_RSA_PKCS_KEY_PAIR_GEN": pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS": pkcs11.CKM_RSA_PKCS,
	"CKM_RSA_PKCS_PSS":           pkcs11.CKM_RSA_PKCS_PSS,
	"CKM_GENERIC_SECRET_KEY_GEN": pkcs11.CKM_GENERIC_SECRET_KEY_GEN, "CKM_SHA256_HMAC": pkcs11.CKM_SHA256_HMAC,
	"CKM_AES_KEY_GEN": pkcs11.CKM_AES_KEY_GEN, wrapPad: pkcs11.CKM_AES_KEY_WRAP_PAD, wrapKWP: ckmAESKeyWrapKWP,
	encryptData: pkcs11.CKM_AES_ECB_ENCRYPT_DATA,
}

const (
	wrapPad     = "CKM_AES_KEY_WRAP_PAD"
	wrapKWP     = "CKM_AES_KEY_WRAP_KWP"
	encryptData = "CKM_AES_ECB_ENCRYPT_DATA" // keeps a KEK inside the token
)

// capability is something that the module can do if it has the mechanisms.
type capability struct {
	blocks     string // what cannot be done without them
	mechanisms []string
}

// using is making and using keys of a usage.
func using(u hsm.Usage) capability {
	k := u.Kind()
	return capability{k.NeededFor, []string{k.KeyGen, k.Mechanisms[0]}}
}

// copying is making and restoring sealed copies.
var copying = capability{"sealed copies of keys", []string{"CKM_EC_KEY_PAIR_GEN", "CKM_ECDH1_DERIVE", encryptData, wrapPad}}

// available are the mechanisms of a module.
type available map[uint]bool

// lacking says what c needs and the module has not; "" when it has all.
func (a available) lacking(c capability) string {
	var names []string
	for _, name := range c.mechanisms {
		if !a[mechanisms[name]] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("module lacks %s, needed for %s", strings.Join(names, " and "), c.blocks)
}

// check is [hsm.ErrUnsupported] when the module has not what c needs.
func (a available) check(c capability) error {
	if text := a.lacking(c); text != "" {
		return fmt.Errorf("%s: %w", text, hsm.ErrUnsupported)
	}
	return nil
}

// checkMechanisms compares the mechanism list with what the appliance requires,
// so that a lacking one is an error at start and not at the first request, and
// notes what else cannot be done.
func (t *Token) checkMechanisms(require []hsm.Usage) error {
	list, err := t.ctx.GetMechanismList(t.slot)
	if err != nil {
		return startError("C_GetMechanismList", err)
	}
	t.have = available{}
	for _, m := range list {
		t.have[m.Mechanism] = true
	}
	// One name for the other, as wrapping does what RFC 5649 says under either;
	// which it is shows later.
	t.have[pkcs11.CKM_AES_KEY_WRAP_PAD] = t.have[pkcs11.CKM_AES_KEY_WRAP_PAD] || t.have[ckmAESKeyWrapKWP]
	var required []string
	required, t.missing = t.have.shortcomings(require)
	t.hostImport = !t.have[pkcs11.CKM_AES_ECB_ENCRYPT_DATA]
	if len(required) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(required, "; "), hsm.ErrUnavailable)
	}
	return nil
}

func (a available) shortcomings(require []hsm.Usage) (required, notices []string) {
	needed := map[hsm.Usage]bool{}
	for _, u := range require {
		needed[u] = true
	}
	if !a[pkcs11.CKM_AES_ECB_ENCRYPT_DATA] {
		notices = append(notices, "module lacks "+encryptData+": password verifiers are imported in the memory of hsm-worker")
	}
	for _, usage := range hsm.Usages() {
		switch text := a.lacking(using(usage)); {
		case text == "":
		case needed[usage]:
			required = append(required, text)
		default:
			notices = append(notices, text)
		}
	}
	return required, notices
}

// chooseWrapping finds the mechanism that wraps as RFC 5649 does. By that name
// v2.40 has CKM_AES_KEY_WRAP_PAD, which v3.0 calls CKM_AES_KEY_WRAP_KWP; then
// the former pads as PKCS #7 does and makes 48 bytes of 32.
func (t *Token) chooseWrapping() error {
	t.kwp = pkcs11.CKM_AES_KEY_WRAP_PAD
	if !t.have[ckmAESKeyWrapKWP] {
		return nil
	}
	err := t.run(background, hsm.KeyID{}, func(s *session) error {
		wrapped, err := t.tryWrapping(s)
		if err != nil || len(wrapped) != check.WrappedLen {
			t.kwp = ckmAESKeyWrapKWP
		}
		if c := classify(err); c == reconnect || c == dropped {
			return err
		}
		return nil
	})
	return err
}

// tryWrapping wraps 32 bytes with a key of the moment.
func (t *Token) tryWrapping(s *session) (wrapped []byte, err error) {
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	key, err := t.ctx.GenerateKey(s.handle, mech, sized(passing(pkcs11.CKK_AES, false, pkcs11.CKA_WRAP)))
	if err != nil {
		return nil, at("C_GenerateKey", err)
	}
	defer t.destroy(s, key, &err)
	return t.wrap(s, object{handle: key}, make([]byte, check.SecretLen))
}
