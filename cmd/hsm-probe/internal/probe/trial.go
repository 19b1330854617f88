package probe

import (
	"errors"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
)

// Mechanisms and a key type of PKCS#11 v3.0 that miekg/pkcs11 has no names for.
const (
	ckmEdwardsKeyPairGen = 0x1055
	ckmEdDSA             = 0x1057
	ckmAESKeyWrapPad     = 0x210a
)

// Reasons that are not return codes.
var (
	errWrong = errors.New("the result is wrong")
	errNoKey = errors.New("not tried: there is no key for it")
	errOpen  = errors.New("an altered key is accepted")
)

// trial is one use of one mechanism.
type trial struct {
	name      string
	mechanism string
	code      uint
	required  bool
	usedFor   string
	try       func(*prober) error // nil: the appliance does not use it
}

const (
	signing  = "signing decisions and certificates"
	opening  = "opening authorization requests"
	records  = "authenticating stored records"
	password = "keeping password verifiers"
	copies   = "sealed copies of keys"
	serving  = "the signing API"
)

// trials are in an order in which keys exist before they are used.
var trials = []trial{
	{"generate-p256", "CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN, true, signing, (*prober).makeP256},
	{"sign-p256", "CKM_ECDSA", pkcs11.CKM_ECDSA, true, signing, func(p *prober) error { return p.ecdsa(p.p256, curveP256) }},
	{"derive-p256", "CKM_ECDH1_DERIVE", pkcs11.CKM_ECDH1_DERIVE, true, opening, (*prober).ecdh},
	{"generate-secret", "CKM_GENERIC_SECRET_KEY_GEN", pkcs11.CKM_GENERIC_SECRET_KEY_GEN, true, records, (*prober).makeSecret},
	{"mac", "CKM_SHA256_HMAC", pkcs11.CKM_SHA256_HMAC, true, records, (*prober).hmac},
	{"generate-pair-on-token", "CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN, true, "making keys", (*prober).pairOnToken},
	{"copy-pair-to-token", "CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN, false, copies, (*prober).copyToToken},
	{"generate-aes", "CKM_AES_KEY_GEN", pkcs11.CKM_AES_KEY_GEN, false, password, (*prober).makeAES},
	{"wrap-pad-secret", "CKM_AES_KEY_WRAP_PAD", ckmAESKeyWrapPad, false, password, func(p *prober) error { return p.wrapSecret(ckmAESKeyWrapPad) }},
	{"derive-aes-ecb", "CKM_AES_ECB_ENCRYPT_DATA", pkcs11.CKM_AES_ECB_ENCRYPT_DATA, false, password, (*prober).encryptData},
	{"wrap-pad-ec", "CKM_AES_KEY_WRAP_PAD", ckmAESKeyWrapPad, false, copies, func(p *prober) error { return p.wrapPair(ckmAESKeyWrapPad) }},
	{"wrap-secret", "CKM_AES_KEY_WRAP", pkcs11.CKM_AES_KEY_WRAP, false, copies, func(p *prober) error { return p.wrapSecret(pkcs11.CKM_AES_KEY_WRAP) }},
	{"wrap-ec", "CKM_AES_KEY_WRAP", pkcs11.CKM_AES_KEY_WRAP, false, copies, func(p *prober) error { return p.wrapPair(pkcs11.CKM_AES_KEY_WRAP) }},
	{"generate-p384", "CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN, false, serving, (*prober).makeP384},
	{"sign-p384", "CKM_ECDSA", pkcs11.CKM_ECDSA, false, serving, func(p *prober) error { return p.ecdsa(p.p384, curveP384) }},
	{"generate-ed25519", "CKM_EC_EDWARDS_KEY_PAIR_GEN", ckmEdwardsKeyPairGen, false, serving, (*prober).makeEd25519},
	{"sign-ed25519", "CKM_EDDSA", ckmEdDSA, false, serving, (*prober).eddsa},
	{"generate-rsa2048", "CKM_RSA_PKCS_KEY_PAIR_GEN", pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, false, serving, (*prober).makeRSA},
	{"sign-rsa2048-pkcs1", "CKM_RSA_PKCS", pkcs11.CKM_RSA_PKCS, false, serving, (*prober).pkcs1},
	{"sign-rsa2048-pss", "CKM_RSA_PKCS_PSS", pkcs11.CKM_RSA_PKCS_PSS, false, serving, (*prober).pss},
	{"sign-p256-sha256", "CKM_ECDSA_SHA256", pkcs11.CKM_ECDSA_SHA256, false, "", (*prober).ecdsaSHA256},
	{"sign-rsa2048-sha256", "CKM_SHA256_RSA_PKCS", pkcs11.CKM_SHA256_RSA_PKCS, false, "", (*prober).rsaSHA256},
	{"wrap-rsa-aes", "CKM_RSA_AES_KEY_WRAP", pkcs11.CKM_RSA_AES_KEY_WRAP, false, "", nil},
}

func (p *prober) capabilities() error {
	for _, t := range trials {
		if !p.hasTime() {
			p.skip(t.name)
			if t.required { // unknown counts as missing
				p.note(t, report.Fails, "no time was left")
			}
			continue
		}
		switch {
		case !slices.Contains(p.listed, t.code):
			p.note(t, report.NotListed, "")
		case t.try == nil:
			p.note(t, report.Listed, "")
		default:
			if err := t.try(p); err != nil {
				p.note(t, report.Fails, err.Error())
			} else {
				p.note(t, report.Works, "")
			}
		}
	}
	return nil
}

func (p *prober) note(t trial, v report.Verdict, text string) {
	p.report.Capabilities = append(p.report.Capabilities, report.Capability{
		Name: t.name, Mechanism: t.mechanism, Verdict: v, Error: text, Required: t.required, UsedFor: t.usedFor,
	})
}
