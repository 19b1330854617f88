package hsm

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that Hash names
	_ "crypto/sha512"
	"fmt"
	"slices"
)

// This file is the one table of key usages and signature algorithms. A new usage or
// algorithm is a row here; hsm/pkcs11 derives its templates and mechanisms from it.

// Usage is the one operation that a key is for. Sealed copies carry the number, so it
// never changes.
type Usage uint8

// The usages. 10 was CKM_AES_GCM and is not used again.
const (
	SignP256 Usage = iota + 1
	DeriveP256
	MACKey
	WrapKey
	SignP384
	SignEd25519
	SignRSA2048
	SignRSA3072
	SignRSA4096
)

// Kind describes the keys of a usage in terms of PKCS#11.
type Kind struct {
	Name       string     // of the usage, as the administrator's commands print it
	KeyType    string     // CKA_KEY_TYPE
	Curve      string     // "P-256", "P-384" or "Ed25519"; "" for keys that are not on a curve
	Bits       int        // of a secret key or an RSA modulus
	May        Attributes // which of [AttrUsages] the private or secret key has
	KeyGen     string     // the mechanism that makes it
	Mechanisms []string   // the mechanisms that use it, CKA_ALLOWED_MECHANISMS
	NeededFor  string     // what cannot be done on a module without KeyGen and the first of Mechanisms
}

var usages = [...]Kind{
	SignP256:   ec("sign-p256", "P-256", "signing decisions and certificates"),
	DeriveP256: {"derive-p256", "CKK_EC", "P-256", 0, AttrDerive, "CKM_EC_KEY_PAIR_GEN", []string{"CKM_ECDH1_DERIVE"}, "opening authorization requests"},
	MACKey: {
		"mac", "CKK_GENERIC_SECRET", "", 256, AttrSign, "CKM_GENERIC_SECRET_KEY_GEN",
		[]string{"CKM_SHA256_HMAC"},
		"authenticating stored records",
	},
	WrapKey: {
		"wrap", "CKK_AES", "", 256, AttrWrap | AttrUnwrap, "CKM_AES_KEY_GEN",
		[]string{"CKM_AES_KEY_WRAP_PAD"},
		"keeping password verifiers",
	},
	SignP384: ec("sign-p384", "P-384", "signing with ES384"),
	SignEd25519: {
		"sign-ed25519", "CKK_EC_EDWARDS", "Ed25519", 0, AttrSign, "CKM_EC_EDWARDS_KEY_PAIR_GEN",
		[]string{"CKM_EDDSA"},
		"signing with EdDSA",
	},
	SignRSA2048: rsaKind("sign-rsa2048", 2048),
	SignRSA3072: rsaKind("sign-rsa3072", 3072),
	SignRSA4096: rsaKind("sign-rsa4096", 4096),
}

func ec(name, curve, neededFor string) Kind {
	return Kind{name, "CKK_EC", curve, 0, AttrSign, "CKM_EC_KEY_PAIR_GEN", []string{"CKM_ECDSA"}, neededFor}
}

func rsaKind(name string, bits int) Kind {
	return Kind{
		name, "CKK_RSA", "", bits, AttrSign, "CKM_RSA_PKCS_KEY_PAIR_GEN",
		[]string{"CKM_RSA_PKCS", "CKM_RSA_PKCS_PSS"},
		fmt.Sprintf("signing with RSA keys of %d bits", bits),
	}
}

// Usages returns all usages in the order of their numbers.
func Usages() (all []Usage) {
	for u := SignP256; int(u) < len(usages); u++ {
		all = append(all, u)
	}
	return all
}

func (u Usage) row() *Kind {
	if int(u) >= len(usages) {
		u = 0
	}
	return &usages[u]
}

// Kind returns the row of the usage, zero if it is unknown.
func (u Usage) Kind() Kind { return *u.row() }

// hostUsages are the usages of an HMAC key in place of a wrap key, where passwords are checked on the host.
const hostUsages = AttrSign | AttrVerify

// Form returns the row of a key with these [AttrUsages]. It differs from Kind for a wrap key that is an
// HMAC key, because passwords are checked on the host.
func (u Usage) Form(may Attributes) Kind {
	k := u.Kind()
	if u == WrapKey && may == hostUsages {
		hmac := MACKey.Kind()
		k.KeyType, k.Bits, k.May, k.KeyGen, k.Mechanisms = hmac.KeyType, hmac.Bits, hostUsages, hmac.KeyGen, hmac.Mechanisms
	}
	return k
}

// String returns the name of the usage.
func (u Usage) String() string {
	if name := u.row().Name; name != "" {
		return name
	}
	return fmt.Sprintf("usage(%d)", uint8(u))
}

// Pair reports whether keys of the usage are key pairs.
func (u Usage) Pair() bool { return u.row().Curve != "" || u.row().KeyType == "CKK_RSA" }

// Class returns CKA_CLASS of the private or secret key.
func (u Usage) Class() string {
	if u.Pair() {
		return "CKO_PRIVATE_KEY"
	}
	return "CKO_SECRET_KEY"
}

// Proof returns the algorithm with which a key of the usage is tested, 0 if it does not sign.
func (u Usage) Proof() Algorithm {
	for a := range Algorithm(len(algorithms)) {
		if a.For(u) {
			return a
		}
	}
	return 0
}

// Fits reports whether public may be the public half of a pair of the usage. RSA
// keys must have the exponent 65537.
func (u Usage) Fits(public crypto.PublicKey) bool {
	curve, bits := "", 0
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		curve = k.Curve.Params().Name
	case *ecdh.PublicKey:
		if k.Curve() == ecdh.P256() {
			curve = "P-256"
		}
	case ed25519.PublicKey:
		curve = "Ed25519"
	case *rsa.PublicKey:
		if bits = k.N.BitLen(); k.E != 65537 {
			return false
		}
	}
	return u.Pair() && u.row().Curve == curve && u.row().Bits == bits
}

// Algorithm is a signature algorithm by its name in RFC 7518 §3.1, RFC 8037
// §3.1 and RFC 9053 §2.
type Algorithm uint8

// The algorithms.
const (
	ES256 Algorithm = iota + 1
	ES384
	EdDSA // RFC 8032 §5.1
	RS256
	RS384
	RS512
	PS256 // with a salt as long as the hash, as PS384 and PS512
	PS384
	PS512
)

type algorithm struct {
	name      string
	hash      crypto.Hash // 0 if the message itself is signed
	mechanism string
	size      int // of a signature in bytes; 0 for the length of the modulus
	keys      []Usage
}

var (
	rsaKeys    = []Usage{SignRSA2048, SignRSA3072, SignRSA4096}
	algorithms = [...]algorithm{
		ES256: {"ES256", crypto.SHA256, "CKM_ECDSA", 64, []Usage{SignP256}},
		ES384: {"ES384", crypto.SHA384, "CKM_ECDSA", 96, []Usage{SignP384}},
		EdDSA: {"EdDSA", 0, "CKM_EDDSA", 64, []Usage{SignEd25519}},
		RS256: {"RS256", crypto.SHA256, "CKM_RSA_PKCS", 0, rsaKeys},
		RS384: {"RS384", crypto.SHA384, "CKM_RSA_PKCS", 0, rsaKeys},
		RS512: {"RS512", crypto.SHA512, "CKM_RSA_PKCS", 0, rsaKeys},
		PS256: {"PS256", crypto.SHA256, "CKM_RSA_PKCS_PSS", 0, rsaKeys},
		PS384: {"PS384", crypto.SHA384, "CKM_RSA_PKCS_PSS", 0, rsaKeys},
		PS512: {"PS512", crypto.SHA512, "CKM_RSA_PKCS_PSS", 0, rsaKeys},
	}
)

func (a Algorithm) row() algorithm {
	if int(a) >= len(algorithms) {
		return algorithm{}
	}
	return algorithms[a]
}

// String returns the name of the algorithm.
func (a Algorithm) String() string {
	if name := a.row().name; name != "" {
		return name
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// Hash returns the hash whose digest is signed. It is 0 for [EdDSA], which signs the
// message, and for an unknown algorithm.
func (a Algorithm) Hash() crypto.Hash { return a.row().hash }

// Mechanism returns the PKCS#11 mechanism, "CKM_ECDSA".
func (a Algorithm) Mechanism() string { return a.row().mechanism }

// Size returns the length in bytes of the signatures of a key of usage u.
func (a Algorithm) Size(u Usage) int {
	if n := a.row().size; n != 0 {
		return n
	}
	return u.row().Bits / 8
}

// PSS reports whether the algorithm is one of RSASSA-PSS.
func (a Algorithm) PSS() bool { return a.row().mechanism == "CKM_RSA_PKCS_PSS" }

// Fits reports whether a pair with this public half may sign with the algorithm.
func (a Algorithm) Fits(public crypto.PublicKey) bool {
	return slices.ContainsFunc(a.row().keys, func(u Usage) bool { return u.Fits(public) })
}

// For reports whether keys of usage u sign with the algorithm.
func (a Algorithm) For(u Usage) bool { return slices.Contains(a.row().keys, u) }
