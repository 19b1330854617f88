package pkcs11

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// ways are the ways in which a module does what the standard leaves open or what vendors do
// differently. Trials choose them when the token is opened (trial.go), so that nothing is found out
// at the first request.
type ways struct {
	mac      macWay    // the zero value: no key makes MACs
	wrapping wrapWay   // the zero value: no key wraps
	importer importWay // how a password verifier gets to the wrap key
	// unseen are usages that the module refuses to see, even false, so that no template has them.
	unseen    []uint
	agreement agreeWay // the zero value: no ECDH ends in a shared secret
	// openZ: the module derives no readable secret that is CKA_PRIVATE true.
	openZ bool
	// untried names what could not be tried without leaving something on the token.
	untried []string
}

// macWay is a type of HMAC keys with the mechanism that makes them.
type macWay struct {
	keyType, keygen     uint
	typeName, mechanism string
	unsized             bool // the type says the length: CKA_VALUE_LEN is refused
}

// Key generation of HMAC keys beyond PKCS#11 v2.40.
const (
	ckmSHA256KeyGen        = 0x4005     // PKCS#11 v3.0 §2.23.6
	ckmNShieldHMACKeyGen   = 0xde436997 // CKM_NC_SHA256_HMAC_KEY_GEN: nShield uses no generic secret for HMAC
	keygenSHA256           = "CKM_SHA256_KEY_GEN"
	keygenNShield          = "CKM_NC_SHA256_HMAC_KEY_GEN"
	keygenGeneric          = "CKM_GENERIC_SECRET_KEY_GEN"
	typeGeneric, typeHMAC  = "CKK_GENERIC_SECRET", "CKK_SHA256_HMAC"
	ckmLunaKWP, ckmCloudKW = 0x80000171, 0x8000216f
)

// macWays are tried in this order.
var macWays = []macWay{
	{keyType: pkcs11.CKK_GENERIC_SECRET, keygen: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, typeName: typeGeneric, mechanism: keygenGeneric},
	{keyType: pkcs11.CKK_SHA256_HMAC, keygen: ckmSHA256KeyGen, typeName: typeHMAC, mechanism: keygenSHA256},
	{keyType: pkcs11.CKK_SHA256_HMAC, keygen: ckmNShieldHMACKeyGen, typeName: typeHMAC, mechanism: keygenNShield},
	{keyType: pkcs11.CKK_SHA256_HMAC, keygen: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, typeName: typeHMAC, mechanism: keygenGeneric},
	{keyType: pkcs11.CKK_SHA256_HMAC, keygen: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, typeName: typeHMAC, mechanism: keygenGeneric, unsized: true}, // YubiHSM 2
}

// wrapWay is a mechanism that wraps a secret of 32 bytes.
type wrapWay struct {
	mechanism uint
	name      string
	form      byte // the first byte of what is kept, check.KeptKW …; 0: RFC 5649, without such a byte
	iv        int  // bytes of the IV, which follow the first byte
}

// with returns the mechanism with its parameter.
func (w wrapWay) with(iv []byte) []*pkcs11.Mechanism {
	var parameter any
	switch w.form {
	case check.KeptGCM:
		parameter = pkcs11.NewGCMParams(iv, nil, 128)
	case check.KeptCBC:
		parameter = iv
	}
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(w.mechanism, parameter)}
}

// wrapWays are tried in this order. In PKCS#11 v2.40, CKM_AES_KEY_WRAP_PAD is RFC 5649, in v3.0 the
// other one; a module that has both may pad as PKCS #7 does under the first name, which makes 48
// bytes of 32. Luna, and AWS CloudHSM and Marvell LiquidSecurity, have numbers that their vendors
// chose. The last three keep a verifier where none of these works. They neither import one inside the
// token nor make sealed copies, because phones and sealed copies use RFC 5649.
var wrapWays = []wrapWay{
	{mechanism: pkcs11.CKM_AES_KEY_WRAP_PAD, name: wrapPad},
	{mechanism: ckmAESKeyWrapKWP, name: wrapKWP},
	{mechanism: ckmLunaKWP, name: "CKM_LUNA_AES_KWP"},
	{mechanism: ckmCloudKW, name: "CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD"},
	{pkcs11.CKM_AES_KEY_WRAP, wrapKW, check.KeptKW, 0},
	{pkcs11.CKM_AES_GCM, wrapGCM, check.KeptGCM, 12},
	{pkcs11.CKM_AES_CBC_PAD, wrapCBC, check.KeptCBC, 16},
}

const wrapKW, wrapGCM, wrapCBC = "CKM_AES_KEY_WRAP", "CKM_AES_GCM", "CKM_AES_CBC_PAD"

// importWay says where a password verifier is while it is imported.
type importWay string

// The ways of importing, the best first.
const (
	importInside importWay = "inside the token"
	importWorker importWay = "in the memory of hsm-worker"
	importNone   importWay = ""
)

// agreeWay says where the shared secret of a KEM is computed from the Z of an ECDH.
type agreeWay string

// The ways of key agreement, the best first. Only the first can also import verifiers in the worker.
const (
	agreeRead   agreeWay = "CKD_NULL, a secret that is read"
	agreeDigest agreeWay = "CKD_NULL, a secret that C_DigestKey hashes inside the token"
	agreeKDF    agreeWay = "CKD_SHA256_KDF, a secret that stays inside the token"
	agreeNone   agreeWay = ""
)

// kems lists what the way can do.
func (a agreeWay) kems() []hsm.KEM {
	switch a {
	case agreeRead, agreeDigest:
		return []hsm.KEM{hsm.DHKEM, hsm.KEM2}
	case agreeKDF:
		return []hsm.KEM{hsm.KEM2}
	}
	return nil
}

// agrees describes the key agreement for an administrator.
func (w ways) agrees() string {
	if w.agreement == agreeNone {
		return "key agreement: none"
	}
	text := "key agreement: " + string(w.agreement)
	if w.openZ {
		text += " (CKA_PRIVATE false)"
	}
	var suites []string
	for _, k := range w.agreement.kems() {
		suites = append(suites, k.String())
	}
	return text + ", for " + strings.Join(suites, " and ")
}

// standard are the ways of PKCS#11 v2.40.
var standard = ways{mac: macWays[0], wrapping: wrapWays[0], importer: importInside, agreement: agreeRead}

// names describes the ways for an administrator, one sentence for each choice.
func (w ways) names() []string {
	list := []string{"MAC: none"}
	if w.mac != (macWay{}) {
		list[0] = fmt.Sprintf("MAC: %s by %s", w.mac.typeName, w.mac.mechanism)
	}
	if w.wrapping.name == "" {
		list = append(list, "key wrap: none")
	} else {
		list = append(list, fmt.Sprintf("key wrap: %s (%#x)", w.wrapping.name, w.wrapping.mechanism))
	}
	if w.importer == importNone {
		list = append(list, "import of verifiers: none")
	} else {
		list = append(list, "import of verifiers: "+string(w.importer))
	}
	list = append(list, w.agrees())
	if len(w.unseen) > 0 {
		var names []string
		for _, u := range w.unseen {
			names = append(names, nameOf(usageNames, u))
		}
		list = append(list, "templates: without "+strings.Join(names, ", "))
	}
	for _, u := range w.untried {
		list = append(list, "not tried: "+u)
	}
	return list
}

// Ways describes how the module is used, one sentence for each choice.
func (t *Token) Ways() []string {
	list := t.ways.names()
	if t.hostCheck {
		list = append(list, "passwords: checked in the memory of hsm-worker")
	}
	return list
}

// profile returns the profile of a usage as this module has it.
func (t *Token) profile(usage hsm.Usage) profile {
	p := profiles[usage]
	switch {
	case usage == hsm.WrapKey && t.hostCheck:
		p = hostProfile
		p.keyType, p.keygen, p.unsized = t.ways.mac.keyType, t.ways.mac.keygen, t.ways.mac.unsized
	case usage == hsm.WrapKey:
		p.mechanisms = []uint{t.ways.wrapping.mechanism}
	case usage == hsm.MACKey:
		p.keyType, p.keygen, p.unsized = t.ways.mac.keyType, t.ways.mac.keygen, t.ways.mac.unsized
	}
	return p
}

// seen leaves out of a template the usages that are false and that the module refuses to see.
func (t *Token) seen(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if len(t.ways.unseen) == 0 {
		return template
	}
	return slices.DeleteFunc(slices.Clone(template), func(a *pkcs11.Attribute) bool {
		return slices.Contains(t.ways.unseen, a.Type) && !truth(a.Value)
	})
}

// usageNames has the usages by their names.
var usageNames = func() map[string]uint {
	all := map[string]uint{"CKA_VERIFY_RECOVER": pkcs11.CKA_VERIFY_RECOVER}
	for a, typ := range attributeTypes {
		if a&hsm.AttrUsages != 0 {
			all[a.Names()[0]] = typ
		}
	}
	return all
}()
