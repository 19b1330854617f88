package pkcs11

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// mechanism is one by its name in the standard.
type mechanism struct {
	name string
	code uint
}

var (
	ecKeyGen  = mechanism{"CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN}
	ecdsa     = mechanism{"CKM_ECDSA", pkcs11.CKM_ECDSA}
	ecdh1     = mechanism{"CKM_ECDH1_DERIVE", pkcs11.CKM_ECDH1_DERIVE}
	edKeyGen  = mechanism{"CKM_EC_EDWARDS_KEY_PAIR_GEN", ckmECEdwardsKeyGen}
	eddsa     = mechanism{"CKM_EDDSA", ckmEdDSA}
	rsaKeyGen = mechanism{"CKM_RSA_PKCS_KEY_PAIR_GEN", pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN}
	rsaPKCS   = mechanism{"CKM_RSA_PKCS", pkcs11.CKM_RSA_PKCS}
	rsaPSS    = mechanism{"CKM_RSA_PKCS_PSS", pkcs11.CKM_RSA_PKCS_PSS}
	secretGen = mechanism{"CKM_GENERIC_SECRET_KEY_GEN", pkcs11.CKM_GENERIC_SECRET_KEY_GEN}
	hmac256   = mechanism{"CKM_SHA256_HMAC", pkcs11.CKM_SHA256_HMAC}
	aesKeyGen = mechanism{"CKM_AES_KEY_GEN", pkcs11.CKM_AES_KEY_GEN}
	aesGCM    = mechanism{"CKM_AES_GCM", pkcs11.CKM_AES_GCM}
	wrapPad   = mechanism{"CKM_AES_KEY_WRAP_PAD", pkcs11.CKM_AES_KEY_WRAP_PAD}
	wrapKWP   = mechanism{"CKM_AES_KEY_WRAP_KWP", ckmAESKeyWrapKWP}
	// encryptData is the mechanism that keeps a KEK inside the token.
	encryptData = mechanism{"CKM_AES_ECB_ENCRYPT_DATA", pkcs11.CKM_AES_ECB_ENCRYPT_DATA}
)

// capability is what something needs of the module.
type capability struct {
	blocks     string // what cannot be done without it
	mechanisms []mechanism
}

// capabilities are what the keys of each usage need.
var capabilities = map[hsm.Usage]capability{
	hsm.SignP256:    {"signing decisions and certificates", []mechanism{ecKeyGen, ecdsa}},
	hsm.DeriveP256:  {"opening authorization requests", []mechanism{ecKeyGen, ecdh1}},
	hsm.MACKey:      {"authenticating stored records", []mechanism{secretGen, hmac256}},
	hsm.WrapKey:     {"keeping password verifiers", []mechanism{aesKeyGen, wrapPad}},
	hsm.SignP384:    {"signing with ES384", []mechanism{ecKeyGen, ecdsa}},
	hsm.SignEd25519: {"signing with EdDSA", []mechanism{edKeyGen, eddsa}},
	hsm.SignRSA2048: {"signing with RSA keys of 2048 bits", []mechanism{rsaKeyGen, rsaPKCS}},
	hsm.SignRSA3072: {"signing with RSA keys of 3072 bits", []mechanism{rsaKeyGen, rsaPKCS}},
	hsm.SignRSA4096: {"signing with RSA keys of 4096 bits", []mechanism{rsaKeyGen, rsaPKCS}},
	hsm.SealAES:     {"encrypting", []mechanism{aesKeyGen, aesGCM}},
}

// copying is what sealed copies need, made or restored.
var copying = capability{"sealed copies of keys", []mechanism{ecKeyGen, ecdh1, encryptData, wrapPad}}

// available are the mechanisms of a module.
type available map[uint]bool

// lacking says what c needs and the module has not; "" when it has all.
func (a available) lacking(c capability) string {
	var names []string
	for _, m := range c.mechanisms {
		if !a[m.code] {
			names = append(names, m.name)
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
	t.have[wrapPad.code] = t.have[wrapPad.code] || t.have[wrapKWP.code]
	var required []string
	required, t.missing = t.have.shortcomings(require)
	t.hostImport = !t.have[encryptData.code]
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
	if !a[encryptData.code] {
		notices = append(notices, "module lacks "+encryptData.name+": password verifiers are imported in the memory of hsm-worker")
	}
	for usage := hsm.SignP256; usage <= hsm.SealAES; usage++ {
		switch text := a.lacking(capabilities[usage]); {
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
	t.kwp = wrapPad.code
	if !t.have[wrapKWP.code] {
		return nil
	}
	err := t.run(background, hsm.KeyID{}, func(s *session) error {
		wrapped, err := t.tryWrapping(s)
		if err != nil || len(wrapped) != border.WrappedLen {
			t.kwp = wrapKWP.code
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
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(aesKeyGen.code, nil)}
	key, err := t.ctx.GenerateKey(s.handle, mech, sized(passing(pkcs11.CKK_AES, false, pkcs11.CKA_WRAP)))
	if err != nil {
		return nil, at("C_GenerateKey", err)
	}
	defer t.destroy(s, key, &err)
	return t.wrap(s, object{handle: key}, make([]byte, border.SecretLen))
}
