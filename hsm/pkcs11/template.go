package pkcs11

import (
	"encoding/binary"
	"slices"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// profile is what the private or secret key of a usage looks like on a token.
// Every usage attribute of its class is written out, so that no default of a
// module decides.
type profile struct {
	class, keyType uint
	usages         []uint // all usage attributes of the class
	allowed        []uint // those that are true
	mechanisms     []uint // CKA_ALLOWED_MECHANISMS
	keygen         uint   // mechanism that makes it
	params         []byte // CKA_EC_PARAMS
	bits           int    // of an RSA modulus
	public         []uint // usage attributes true on the public half
}

// What PKCS#11 v3.0 has and miekg/pkcs11 has not.
const (
	ckkECEdwards       = 0x40
	ckmECEdwardsKeyGen = 0x1055
	ckmEdDSA           = 0x1057
	ckmAESKeyWrapKWP   = 0x210b
)

var (
	privateUsages = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
	publicUsages  = []uint{pkcs11.CKA_VERIFY, pkcs11.CKA_VERIFY_RECOVER, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_DERIVE}
	secretUsages  = []uint{
		pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT,
		pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	}
)

var (
	signer = profile{
		class: pkcs11.CKO_PRIVATE_KEY, usages: privateUsages,
		allowed: []uint{pkcs11.CKA_SIGN}, public: []uint{pkcs11.CKA_VERIFY},
	}
	secretKey = profile{class: pkcs11.CKO_SECRET_KEY, usages: secretUsages}
)

var profiles = map[hsm.Usage]profile{
	hsm.SignP256:    signer.ec(oidP256),
	hsm.SignP384:    signer.ec(oidP384),
	hsm.SignEd25519: signer.edwards(),
	hsm.SignRSA2048: signer.rsa(2048),
	hsm.SignRSA3072: signer.rsa(3072),
	hsm.SignRSA4096: signer.rsa(4096),
	hsm.DeriveP256: {
		class: pkcs11.CKO_PRIVATE_KEY, keyType: pkcs11.CKK_EC, usages: privateUsages,
		allowed: []uint{pkcs11.CKA_DERIVE}, mechanisms: []uint{pkcs11.CKM_ECDH1_DERIVE},
		keygen: pkcs11.CKM_EC_KEY_PAIR_GEN, params: oidP256,
	},
	hsm.MACKey: {
		class: pkcs11.CKO_SECRET_KEY, keyType: pkcs11.CKK_GENERIC_SECRET, usages: secretUsages,
		allowed: []uint{pkcs11.CKA_SIGN}, mechanisms: []uint{pkcs11.CKM_SHA256_HMAC}, keygen: pkcs11.CKM_GENERIC_SECRET_KEY_GEN,
	},
	hsm.WrapKey: secretKey.aes(pkcs11.CKM_AES_KEY_WRAP_PAD, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
	hsm.SealAES: secretKey.aes(pkcs11.CKM_AES_GCM, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT),
}

func (p profile) ec(params []byte) profile {
	p.keyType, p.params, p.keygen = pkcs11.CKK_EC, params, pkcs11.CKM_EC_KEY_PAIR_GEN
	p.mechanisms = []uint{pkcs11.CKM_ECDSA}
	return p
}

func (p profile) edwards() profile {
	p.keyType, p.params, p.keygen = ckkECEdwards, oidEd25519, ckmECEdwardsKeyGen
	p.mechanisms = []uint{ckmEdDSA}
	return p
}

func (p profile) rsa(bits int) profile {
	p.keyType, p.bits, p.keygen = pkcs11.CKK_RSA, bits, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
	p.mechanisms = []uint{pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS}
	return p
}

func (p profile) aes(mechanism uint, allowed ...uint) profile {
	p.keyType, p.keygen, p.allowed = pkcs11.CKK_AES, pkcs11.CKM_AES_KEY_GEN, allowed
	p.mechanisms = []uint{mechanism}
	return p
}

// profile is that of a usage with the mechanism that this module wraps by.
func (t *Token) profile(usage hsm.Usage) profile {
	p := profiles[usage]
	if usage == hsm.WrapKey {
		p.mechanisms = []uint{t.kwp}
	}
	return p
}

func (p profile) allows(usage uint) bool { return slices.Contains(p.allowed, usage) }

// guarded is a private or secret key's protection and usage. What is
// extractable is so for as long as its copies are made.
func (p profile) guarded(extractable bool) []*pkcs11.Attribute {
	list := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable),
	}
	return append(list, flags(p.usages, p.allowed)...)
}

// privateHalf is the template of a private key as a session object.
func (p profile) privateHalf(id []byte, extractable bool) []*pkcs11.Attribute {
	return append(p.guarded(extractable), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
}

// publicHalf is the template of a public key as a session object, without what
// says which key it is to be.
func (p profile) publicHalf(id []byte) []*pkcs11.Attribute {
	return append(p.verifying(), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
}

// verifying is a public key's usage.
func (p profile) verifying() []*pkcs11.Attribute {
	return append(flags(publicUsages, p.public), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false))
}

// secret is the template of a secret key of 32 bytes on the token.
func (p profile) secret(id []byte, label string) []*pkcs11.Attribute {
	return sized(append(append(p.guarded(false), p.kind()...), final(id, label)...))
}

// secretDraft is that of a secret key which is to be copied, as a session object.
func (p profile) secretDraft(id []byte) []*pkcs11.Attribute {
	return sized(append(p.privateHalf(id, true), p.kind()...))
}

func (p profile) kind() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, p.class),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, p.keyType),
	}
}

// restriction is CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE, which
// not every module knows.
func (p profile) restriction() *pkcs11.Attribute {
	var list []byte
	for _, m := range p.mechanisms {
		list = binary.NativeEndian.AppendUint64(list, uint64(m))
	}
	return pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, list)
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
