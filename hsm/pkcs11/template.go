package pkcs11

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// profile is what the private or secret key of a usage looks like on a token.
// Every usage attribute of its class is written out, so that no default of a
// module decides.
type profile struct {
	class, keyType uint
	usages         []uint // all usage attributes of the class
	allowed        []uint // those that are true
	mechanism      uint   // CKA_ALLOWED_MECHANISMS
	keygen         uint   // of a secret key
	public         []uint // usage attributes true on the public half
}

var (
	privateUsages = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
	publicUsages  = []uint{pkcs11.CKA_VERIFY, pkcs11.CKA_VERIFY_RECOVER, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_DERIVE}
	secretUsages  = []uint{
		pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT,
		pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	}
)

var profiles = map[hsm.Usage]profile{
	hsm.SignP256: {
		class: pkcs11.CKO_PRIVATE_KEY, keyType: pkcs11.CKK_EC, usages: privateUsages,
		allowed: []uint{pkcs11.CKA_SIGN}, mechanism: pkcs11.CKM_ECDSA, public: []uint{pkcs11.CKA_VERIFY},
	},
	hsm.DeriveP256: {
		class: pkcs11.CKO_PRIVATE_KEY, keyType: pkcs11.CKK_EC, usages: privateUsages,
		allowed: []uint{pkcs11.CKA_DERIVE}, mechanism: pkcs11.CKM_ECDH1_DERIVE,
	},
	hsm.MACKey: {
		class: pkcs11.CKO_SECRET_KEY, keyType: pkcs11.CKK_GENERIC_SECRET, usages: secretUsages,
		allowed: []uint{pkcs11.CKA_SIGN}, mechanism: pkcs11.CKM_SHA256_HMAC, keygen: pkcs11.CKM_GENERIC_SECRET_KEY_GEN,
	},
	hsm.WrapKey: {
		class: pkcs11.CKO_SECRET_KEY, keyType: pkcs11.CKK_AES, usages: secretUsages,
		allowed: []uint{pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP}, mechanism: pkcs11.CKM_AES_KEY_WRAP_PAD, keygen: pkcs11.CKM_AES_KEY_GEN,
	},
}

func (p profile) allows(usage uint) bool { return slices.Contains(p.allowed, usage) }

// guarded is a private or secret key's protection and usage.
func (p profile) guarded() []*pkcs11.Attribute {
	list := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
	}
	return append(list, flags(p.usages, p.allowed)...)
}

// privateHalf is the template of a private key as a session object.
func (p profile) privateHalf(id []byte) []*pkcs11.Attribute {
	return append(p.guarded(), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
}

// publicHalf is the template of a public key as a session object.
func (p profile) publicHalf(id []byte) []*pkcs11.Attribute {
	return append(flags(publicUsages, p.public),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id))
}

// secret is the template of a secret key of 32 bytes.
func (p profile) secret(id []byte, label string) []*pkcs11.Attribute {
	list := append(p.guarded(), final(id, label)...)
	return append(list,
		// Not on key pairs: they get to the token by a copy, in which SoftHSM
		// refuses this attribute.
		pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, p.class),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, p.keyType),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, border.SecretLen))
}

// restriction is CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE, which
// not every module knows.
func (p profile) restriction() *pkcs11.Attribute {
	return pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, binary.NativeEndian.AppendUint64(nil, uint64(p.mechanism)))
}

// final is what a key on the token gets in the same call that puts it there:
// its name, and that nothing about it can be changed afterwards.
func final(id []byte, label string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
	}
}

func flags(all, on []uint) (list []*pkcs11.Attribute) {
	for _, a := range all {
		list = append(list, pkcs11.NewAttribute(a, slices.Contains(on, a)))
	}
	return list
}

func set(list []*pkcs11.Attribute) crypto11.AttributeSet {
	s := crypto11.NewAttributeSet()
	s.AddIfNotPresent(list)
	return s
}

// capability is what a key of one usage needs of the module.
type capability struct {
	blocks     string // what cannot be done without it
	required   bool   // serving depends on it
	mechanisms []mechanism
}

type mechanism struct {
	name string
	code uint
}

// importing is the mechanism that keeps an import inside the token.
var importing = mechanism{"CKM_AES_ECB_ENCRYPT_DATA", pkcs11.CKM_AES_ECB_ENCRYPT_DATA}

var capabilities = map[hsm.Usage]capability{
	hsm.SignP256: {"signing decisions and certificates", true, []mechanism{
		{"CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN}, {"CKM_ECDSA", pkcs11.CKM_ECDSA},
	}},
	hsm.DeriveP256: {"opening authorization requests", true, []mechanism{
		{"CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN}, {"CKM_ECDH1_DERIVE", pkcs11.CKM_ECDH1_DERIVE},
	}},
	hsm.MACKey: {"authenticating stored records", true, []mechanism{
		{"CKM_GENERIC_SECRET_KEY_GEN", pkcs11.CKM_GENERIC_SECRET_KEY_GEN}, {"CKM_SHA256_HMAC", pkcs11.CKM_SHA256_HMAC},
	}},
	hsm.WrapKey: {"keeping password verifiers", false, []mechanism{
		{"CKM_AES_KEY_GEN", pkcs11.CKM_AES_KEY_GEN},
		{"CKM_AES_KEY_WRAP_PAD", pkcs11.CKM_AES_KEY_WRAP_PAD},
	}},
}

// checkMechanisms compares the mechanism list with what is needed, so that a
// lacking one is an error at start and not at the first request.
func (t *Token) checkMechanisms() error {
	list, err := t.ctx.GetMechanismList(t.slot)
	if err != nil {
		return startError("C_GetMechanismList", err)
	}
	have := make([]uint, len(list))
	for i, m := range list {
		have[i] = m.Mechanism
	}
	required, notices := lacking(have)
	t.missing = notices
	t.hostImport = !slices.Contains(have, importing.code)
	if len(required) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(required, "; "), hsm.ErrUnavailable)
	}
	return nil
}

func lacking(have []uint) (required, notices []string) {
	if !slices.Contains(have, importing.code) {
		notices = append(notices, "module lacks "+importing.name+": password verifiers are imported in the memory of hsm-worker")
	}
	for usage := hsm.SignP256; usage <= hsm.WrapKey; usage++ {
		c := capabilities[usage]
		for _, m := range c.mechanisms {
			if slices.Contains(have, m.code) {
				continue
			}
			text := fmt.Sprintf("module lacks %s, needed for %s", m.name, c.blocks)
			if c.required {
				required = append(required, text)
			} else {
				notices = append(notices, text)
			}
		}
	}
	return required, notices
}
