package pkcs11

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// profile describes the private or secret key of a usage on a token. It sets every usage
// attribute of the class, so that no default of a module applies.
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

// Constants of PKCS#11 v3.0 that miekg/pkcs11 lacks.
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

// profile returns the profile of a usage with the mechanism by which this module wraps.
func (t *Token) profile(usage hsm.Usage) profile {
	p := profiles[usage]
	switch {
	case usage == hsm.WrapKey && t.hostCheck:
		return hostProfile
	case usage == hsm.WrapKey:
		p.mechanisms = []uint{t.kwp}
	}
	return p
}

// holds reports whether keys of the profile may have the type.
func (p profile) holds(keyType uint) bool { return keyType == p.keyType }

func (p profile) allows(usage uint) bool { return slices.Contains(p.allowed, usage) }

// protection returns the protection and usage of a private or secret key. A key is
// extractable only while its copies are made.
func (p profile) protection(extractable bool) []*pkcs11.Attribute {
	list := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable),
	}
	return append(list, flags(p.usages, p.allowed)...)
}

// privateHalf returns the template of a private key as a session object.
func (p profile) privateHalf(id []byte, extractable bool) []*pkcs11.Attribute {
	return append(p.protection(extractable), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
}

// publicHalf returns the template of a public key as a session object, without the
// attributes that determine the key.
func (p profile) publicHalf(id []byte) []*pkcs11.Attribute {
	return append(p.verifying(), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
}

// verifying returns the usage of a public key.
func (p profile) verifying() []*pkcs11.Attribute {
	return append(flags(publicUsages, p.public), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false))
}

// secret returns the template of a secret key of 32 bytes on the token.
func (p profile) secret(id []byte, label string) []*pkcs11.Attribute {
	return withLength(append(append(p.protection(false), p.kind()...), tokenAttributes(id, label)...))
}

// secretDraft returns the template of a secret key as a session object, of which copies are made.
func (p profile) secretDraft(id []byte) []*pkcs11.Attribute {
	return withLength(append(p.privateHalf(id, true), p.kind()...))
}

func (p profile) kind() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, p.class),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, p.keyType),
	}
}

// restriction returns CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE. Not every
// module knows it.
func (p profile) restriction() *pkcs11.Attribute {
	var list []byte
	for _, m := range p.mechanisms {
		list = binary.NativeEndian.AppendUint64(list, uint64(m))
	}
	return pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, list)
}

// tokenAttributes returns what a key gets in the call that puts it on the token: its name,
// and CKA_MODIFIABLE false.
func tokenAttributes(id []byte, label string) []*pkcs11.Attribute {
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

// available holds the mechanisms of a module.
type available map[uint]bool

// lacking returns which mechanisms of c the module lacks, "" if it has all.
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

// check returns [hsm.ErrUnsupported] if the module lacks a mechanism of c.
func (a available) check(c capability) error {
	if text := a.lacking(c); text != "" {
		return fmt.Errorf("%s: %w", text, hsm.ErrUnsupported)
	}
	return nil
}

// checkMechanisms reads the mechanism list. It returns an error if a usage in require is
// not possible, so that this shows at start and not at the first request, and notes what
// else is not possible.
func (t *Token) checkMechanisms(require []hsm.Usage) error {
	list, err := t.ctx.GetMechanismList(t.slot)
	if err != nil {
		return startError("C_GetMechanismList", err)
	}
	t.have = available{}
	for _, m := range list {
		t.have[m.Mechanism] = true
	}
	// Either name will do; chooseWrapping finds the right one.
	t.have[pkcs11.CKM_AES_KEY_WRAP_PAD] = t.have[pkcs11.CKM_AES_KEY_WRAP_PAD] || t.have[ckmAESKeyWrapKWP]
	var required []string
	required, t.missing = t.missingFor(require)
	t.hostImport = !t.have[pkcs11.CKM_AES_ECB_ENCRYPT_DATA]
	if len(required) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(required, "; "), hsm.ErrUnavailable)
	}
	return nil
}

func (t *Token) missingFor(require []hsm.Usage) (required, notices []string) {
	needed := map[hsm.Usage]bool{}
	for _, u := range require {
		needed[u] = true
	}
	switch {
	case t.hostCheck:
		notices = append(notices, hostNotice)
	case !t.have[pkcs11.CKM_AES_ECB_ENCRYPT_DATA]:
		notices = append(notices, "module lacks "+encryptData+": password verifiers are imported in the memory of hsm-worker")
	}
	for _, usage := range hsm.Usages() {
		switch text := t.have.lacking(t.using(usage)); {
		case text == "":
		case needed[usage]:
			required = append(required, text)
		default:
			notices = append(notices, text)
		}
	}
	return required, notices
}

// chooseWrapping finds the mechanism that wraps as RFC 5649 does. In v2.40 that is
// CKM_AES_KEY_WRAP_PAD, in v3.0 CKM_AES_KEY_WRAP_KWP; a module with both may pad as PKCS
// #7 does under the first name, which makes 48 bytes of 32.
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

// tryWrapping wraps 32 bytes with a temporary key.
func (t *Token) tryWrapping(s *session) (wrapped []byte, err error) {
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	key, err := t.ctx.GenerateKey(s.handle, mech, withLength(sessionSecret(pkcs11.CKK_AES, false, pkcs11.CKA_WRAP)))
	if err != nil {
		return nil, at("C_GenerateKey", err)
	}
	defer t.destroy(s, key, &err)
	return t.wrap(s, object{handle: key}, make([]byte, check.SecretLen))
}
