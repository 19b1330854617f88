package hsm

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
)

// KeyID is the CKA_ID of a key: SHA-256(SubjectPublicKeyInfo)[0:20] for a key
// pair, 20 random bytes for a secret key.
type KeyID [20]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// KeySpec asks for a new key.
type KeySpec struct {
	Label string // CKA_LABEL, "name@version", 1 to 64 bytes
	Usage Usage
	// Recipients, at most 16 on P-256, are for whom a sealed copy is made while
	// the key is born. A key that was made without stays on its token.
	Recipients []*ecdh.PublicKey
}

// Key is what may be known of a key outside the token.
type Key struct {
	ID     KeyID
	Label  string
	Usage  Usage
	Public []byte   // SubjectPublicKeyInfo of a key pair, DER (RFC 5280 §4.1.2.7), else nil
	Sealed []Sealed // from Generate only: a copy for each recipient, in their order
	// Copied, from Generate only, tells that sealed copies were made, for those
	// recipients or to have the key on other tokens: it was extractable until then.
	Copied bool
}

// ECDH is the public half of a key pair on P-256; of any other key it is
// [ErrKey].
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
// A private key is in PKCS #8, a secret key as its 32 bytes. Who has the public
// key of the recipient can make one, so it proves nothing of where it comes from.
type Sealed []byte

// Restore names a sealed copy and what it is to become.
type Restore struct {
	Spec   KeySpec // label and usage it was made with; no recipients
	Sealed Sealed
	With   KeyID  // the recipient's DeriveP256 key, on this token
	Public []byte // SubjectPublicKeyInfo of a key pair, DER
	ID     KeyID  // of a secret key
}

// Import is a 32-byte secret on its way into the token.
type Import struct {
	Enrol     KeyID           // DeriveP256 key that it was wrapped for
	Wrap      KeyID           // WrapKey key that is to keep it
	Ephemeral *ecdh.PublicKey // of whoever wrapped it
	Context   [32]byte        // KEK = AES-256-ECB(key = Z, Context)
	Wrapped   []byte          // AES-KWP (RFC 5649) under the KEK, 40 bytes
}

// Rewrap is a 32-byte secret on its way from one WrapKey key to another.
type Rewrap struct {
	From, To KeyID
	Wrapped  []byte // AES-KWP (RFC 5649) under From, 40 bytes
}

// Certificate is an X.509 certificate beside the key pair it is for.
type Certificate struct {
	Key   KeyID  // SHA-256(SubjectPublicKeyInfo of the certificate)[0:20], CKA_ID
	Label string // CKA_LABEL, 1 to 64 bytes
	DER   []byte // at most 16 KiB
}
