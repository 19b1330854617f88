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

var profiles = func() map[hsm.Usage]profile {
	all := map[hsm.Usage]profile{}
	for _, u := range hsm.Usages() {
		all[u] = newProfile(u)
	}
	return all
}()

// newProfile translates a row of package hsm.
func newProfile(u hsm.Usage) profile {
	k := u.Kind()
	p := profile{class: pkcs11.CKO_SECRET_KEY, usages: secretUsages, keyType: keyTypes[k.KeyType], keygen: mechanisms[k.KeyGen]}
	if u.Pair() {
		p.class, p.usages, p.params, p.bits = pkcs11.CKO_PRIVATE_KEY, privateUsages, curves[k.Curve], k.Bits
	}
	if u.Pair() && k.May == hsm.AttrSign {
		p.public = []uint{pkcs11.CKA_VERIFY}
	}
	for a, typ := range attributeTypes {
		if k.May&a != 0 {
			p.allowed = append(p.allowed, typ)
		}
	}
	for _, name := range k.Mechanisms {
		p.mechanisms = append(p.mechanisms, mechanisms[name])
	}
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
