package hsm

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"countersign/internal/kem"
	"countersign/internal/secret"
)

// KeyID names a key: SHA-256(SubjectPublicKeyInfo)[0:20] for a key pair, under any CKA_ID on
// the token, and CKA_ID, 20 random bytes, for a secret key.
type KeyID [20]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// KEM is a way from an ECDH to a shared secret, by the number of its suite in PROTOCOL.md §2.
type KEM = kem.ID

// The KEMs, the preferred one first.
const (
	DHKEM = kem.DHKEM // DHKEM(P-256, HKDF-SHA256), RFC 9180 §4.1
	KEM2  = kem.KEM2  // PROTOCOL.md §2.3, for tokens that do not let Z out
)

// KeySpec describes a new key.
type KeySpec struct {
	Label string // CKA_LABEL, "name@version", 1 to 64 bytes
	Usage Usage
	// Recipients, at most 16 on P-256, each get a sealed copy, which is made with the key. A
	// key that was made without stays on its token.
	Recipients []*ecdh.PublicKey
}

// Key describes a key outside the token.
type Key struct {
	ID     KeyID
	Label  string
	Usage  Usage
	Public []byte   // SubjectPublicKeyInfo of a key pair, DER (RFC 5280 §4.1.2.7), else nil
	Sealed []Sealed // from Generate only: a copy for each recipient, in their order
	// Copied, from Generate only, reports that sealed copies were made, for those recipients
	// or for other tokens: until then the key was extractable.
	Copied bool
}

// Versioned reports whether the label has the form "name@version" of the appliance's keys. Another
// program's key on the same token may be listed too, but it has no such label.
func (k Key) Versioned() bool { return strings.Contains(k.Label, "@") }

// ECDH returns the public half of a key pair on P-256, and [ErrKey] for every other key.
func (k Key) ECDH() (*ecdh.PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(k.Public)
	if err != nil {
		return nil, fmt.Errorf("public key of %s: %v: %w", k.Label, err, ErrKey)
	}
	if ec, ok := public.(*ecdsa.PublicKey); ok {
		if point, err := ec.ECDH(); err == nil && point.Curve() == ecdh.P256() {
			return point, nil
		}
	}
	return nil, fmt.Errorf("public key of %s, for %s, is not on P-256: %w", k.Label, k.Usage, ErrKey)
}

// Sealed is a private or secret key, encrypted for a recipient on P-256:
//
//	ephemeral point(65) ‖ AES-KWP(KEK, key)            RFC 5649
//	KEK     = AES-256-ECB(key = Z, context)
//	Z       = ECDH(ephemeral, recipient), 32 bytes     SP 800-56A §5.7.1.2
//	context = SHA-256("countersign sealed key v1" ‖ recipient(65) ‖
//	          ephemeral(65) ‖ usage(1) ‖ label)
//
// A private key is in PKCS #8, a secret key as its 32 bytes. Anyone with the public key of
// the recipient can make a sealed copy, so it does not prove its origin.
type Sealed []byte

// Restore is a sealed copy with the key that it becomes.
type Restore struct {
	Spec   KeySpec // label and usage of the original; no recipients
	Sealed Sealed
	With   KeyID  // the recipient's DeriveP256 key, on this token
	Public []byte // SubjectPublicKeyInfo of a key pair, DER
	ID     KeyID  // of a secret key
}

// Import is a 32-byte secret on its way into the token.
type Import struct {
	Enrol     KeyID           // DeriveP256 key for which it was wrapped
	Wrap      KeyID           // WrapKey key under which it is stored
	Ephemeral *ecdh.PublicKey // of the sender
	Context   [32]byte        // KEK = AES-256-ECB(key = Z, Context)
	Wrapped   []byte          // AES-KWP (RFC 5649) under the KEK, 40 bytes
}

// Rewrap is a 32-byte secret on its way from one WrapKey key to another.
type Rewrap struct {
	From, To KeyID
	Wrapped  []byte // under From, as Import returned it
}

// Certificate is an X.509 certificate beside the key pair it is for.
type Certificate struct {
	Key   KeyID  // SHA-256(SubjectPublicKeyInfo of the certificate)[0:20]; its CKA_ID is that of the key
	Label string // CKA_LABEL, 1 to 64 bytes
	DER   []byte // at most 16 KiB
}

// Object is a private or secret key object, the appliance's or a foreign one, as its token
// describes it: PKCS#11 v2.40 §4.7 to §4.10.
type Object struct {
	Token      string     // name of the token; "" if there is only one
	Class      string     // CKA_CLASS, "CKO_PRIVATE_KEY" or "CKO_SECRET_KEY"
	KeyType    string     // CKA_KEY_TYPE, "CKK_EC", or "0x80000001" for an unknown type; "" if not reported
	ID         []byte     // CKA_ID, of any length
	Key        KeyID      // of a key pair whose public half is known, else CKA_ID if that has 20 bytes
	Label      string     // CKA_LABEL
	True       Attributes // attributes that are true
	Told       Attributes // attributes that the token reports
	Mechanisms []string   // CKA_ALLOWED_MECHANISMS, "CKM_ECDSA", …; nil if not reported or not restricted
}

// Has reports whether all of the attributes are true.
func (o Object) Has(a Attributes) bool { return o.True&a == a }

// Attributes is a set of attributes of a key object. All but AttrRestricted are CK_BBOOL.
type Attributes uint32

// The attributes, by their names in PKCS#11 without CKA_.
const (
	AttrPrivate Attributes = 1 << iota
	AttrSensitive
	AttrExtractable
	AttrModifiable
	AttrLocal            // made by C_GenerateKey or C_GenerateKeyPair on this token
	AttrAlwaysSensitive  // sensitive since it was made
	AttrNeverExtractable // not extractable since it was made
	AttrSign
	AttrSignRecover
	AttrVerify
	AttrEncrypt
	AttrDecrypt
	AttrWrap
	AttrUnwrap
	AttrDerive
	// AttrRestricted means that the object has CKA_ALLOWED_MECHANISMS. It is reported where the
	// token keeps that attribute.
	AttrRestricted

	lastAttr = AttrRestricted
)

// AttrUsages are the attributes that say what a key may do.
const AttrUsages = AttrSign | AttrSignRecover | AttrVerify | AttrEncrypt | AttrDecrypt | AttrWrap | AttrUnwrap | AttrDerive

// AttrHistory are the attributes that say how a key was made. A module that loses them for
// the keys that it made reports them for none.
const AttrHistory = AttrLocal | AttrAlwaysSensitive | AttrNeverExtractable

var attributeNames = map[Attributes]string{
	AttrPrivate: "CKA_PRIVATE", AttrSensitive: "CKA_SENSITIVE", AttrExtractable: "CKA_EXTRACTABLE", AttrModifiable: "CKA_MODIFIABLE",
	AttrLocal: "CKA_LOCAL", AttrAlwaysSensitive: "CKA_ALWAYS_SENSITIVE", AttrNeverExtractable: "CKA_NEVER_EXTRACTABLE",
	AttrSign: "CKA_SIGN", AttrSignRecover: "CKA_SIGN_RECOVER", AttrVerify: "CKA_VERIFY", AttrEncrypt: "CKA_ENCRYPT",
	AttrDecrypt: "CKA_DECRYPT", AttrWrap: "CKA_WRAP", AttrUnwrap: "CKA_UNWRAP", AttrDerive: "CKA_DERIVE",
	AttrRestricted: "CKA_ALLOWED_MECHANISMS",
}

// Names returns the names of the attributes in the set, "CKA_SIGN", in the order above.
func (a Attributes) Names() (names []string) {
	for one := AttrPrivate; one <= lastAttr; one <<= 1 {
		if a&one != 0 {
			names = append(names, attributeNames[one])
		}
	}
	return names
}

// PIN is the user PIN of a token, as bytes so that it can be erased.
type PIN = secret.Bytes
