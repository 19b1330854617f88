package pkcs11

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
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
	unsized        bool   // a secret key whose type says its length
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

// holds reports whether keys of the profile may have the type.
func (p profile) holds(keyType uint) bool {
	return keyType == p.keyType || p.keyType == pkcs11.CKK_GENERIC_SECRET && keyType == pkcs11.CKK_SHA256_HMAC
}

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
	return p.sized(append(append(p.protection(false), p.kind()...), tokenAttributes(id, label)...))
}

// session returns the template of a secret key of 32 bytes as a session object.
func (p profile) session(id []byte, extractable bool) []*pkcs11.Attribute {
	return p.sized(append(p.privateHalf(id, extractable), p.kind()...))
}

// sized adds the length of a secret key, unless its type says it.
func (p profile) sized(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if p.unsized {
		return template
	}
	return withLength(template)
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
	wrapKW: pkcs11.CKM_AES_KEY_WRAP, wrapGCM: pkcs11.CKM_AES_GCM, wrapCBC: pkcs11.CKM_AES_CBC_PAD,
	wrapWays[2].name: ckmLunaKWP, wrapWays[3].name: ckmCloudKW,
	keygenSHA256: ckmSHA256KeyGen, keygenNShield: ckmNShieldHMACKeyGen,
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

// readMechanisms reads the mechanism list. Where any of several mechanisms will do, the module counts
// as having the first; chooseWays finds the right one.
func (t *Token) readMechanisms() error {
	list, err := t.ctx.GetMechanismList(t.slot)
	if err != nil {
		return startError("C_GetMechanismList", err)
	}
	t.have = available{}
	for _, m := range list {
		t.have[m.Mechanism] = true
	}
	t.listsPad = t.have[wrapWays[0].mechanism]
	for _, w := range wrapWays {
		t.have[wrapWays[0].mechanism] = t.have[wrapWays[0].mechanism] || t.have[w.mechanism]
	}
	for _, w := range macWays {
		t.have[macWays[0].keygen] = t.have[macWays[0].keygen] || t.have[w.keygen]
	}
	return nil
}

// checkMechanisms returns an error if a usage in require is not possible, so that this shows at
// start and not at the first request, and notes what else is not possible.
func (t *Token) checkMechanisms(require []hsm.Usage) error {
	var required []string
	required, t.missing = t.missingFor(require)
	if t.hostCheck {
		t.missing = append([]string{hostNotice}, t.missing...)
	} else if t.ways.importer == importWorker {
		text := "module lacks " + encryptData + ": password verifiers are imported in the memory of hsm-worker"
		t.missing = append([]string{text}, t.missing...)
	}
	var refusals []string
	for _, name := range slices.Sorted(maps.Keys(t.refused)) {
		refusals = append(refusals, fmt.Sprintf("it refuses %s: %s", name, t.refused[name]))
	}
	if len(required) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(append(required, refusals...), "; "), hsm.ErrUnavailable)
	}
	t.missing = append(t.missing, refusals...)
	return nil
}

func (t *Token) missingFor(require []hsm.Usage) (required, notices []string) {
	for _, usage := range hsm.Usages() {
		switch text := t.have.lacking(t.using(usage)); {
		case text == "":
		case slices.Contains(require, usage):
			required = append(required, text)
		default:
			notices = append(notices, text)
		}
	}
	return required, notices
}
