// Package check validates the arguments of a token's callers before a module sees them,
// and its answers before callers see them. Modules are lenient: SoftHSM signs a digest of
// any length with CKM_ECDSA.
package check

import (
	"crypto/ecdh"
	"crypto/x509"
	"fmt"
	"slices"
	"unicode/utf8"

	"countersign/hsm"
)

// Sizes in bytes.
const (
	PointLen      = 65       // uncompressed SEC1 point on P-256
	SecretLen     = 32       // Z of a P-256 ECDH, a MAC, a secret key
	WrappedLen    = 40       // AES-KWP (RFC 5649) of a secret of 32
	HostSealedLen = 56       // the same, sealed on the host: a salt of 16 before it
	MaxData       = 64 << 10 // what MAC and EdDSA take at most
	maxLabel      = 64
	maxRecipients = 16
	maxSealed     = 4 << 10 // RSA-4096 in PKCS #8 has some 2.4 KiB
	maxCert       = 16 << 10
)

// Data accepts at most [MaxData] bytes; more is [hsm.ErrInput].
func Data(d []byte) error {
	if len(d) > MaxData {
		return fmt.Errorf("data of %d bytes, at most %d: %w", len(d), MaxData, hsm.ErrInput)
	}
	return nil
}

// Peer accepts a public key on P-256, which crypto/ecdh has proven to be a point of the
// curve. Anything else is [hsm.ErrInput].
func Peer(peer *ecdh.PublicKey) error {
	if peer == nil || peer.Curve() != ecdh.P256() {
		return fmt.Errorf("peer is not a point on P-256: %w", hsm.ErrInput)
	}
	return nil
}

// Decap accepts the arguments of that method. An unknown KEM, or an enc that is no point on P-256, is
// [hsm.ErrInput].
func Decap(kem hsm.KEM, enc *ecdh.PublicKey) error {
	if !kem.Known() {
		return fmt.Errorf("KEM of %s is unknown: %w", kem, hsm.ErrInput)
	}
	return Peer(enc)
}

// Offered accepts a KEM that a token offers; another one is [hsm.ErrUnsupported].
func Offered(kem hsm.KEM, offered []hsm.KEM) error {
	if slices.Contains(offered, kem) {
		return nil
	}
	return fmt.Errorf("decapsulating for %s, and the module offers %v: %w", kem, offered, hsm.ErrUnsupported)
}

// Wrapped accepts 40 bytes, the length of the AES-KWP of 32 bytes; anything else is
// [hsm.ErrInput].
func Wrapped(b []byte) error {
	if len(b) != WrappedLen {
		return fmt.Errorf("wrapped secret of %d bytes, want %d: %w", len(b), WrappedLen, hsm.ErrInput)
	}
	return nil
}

// The first byte of a secret that is not kept by RFC 5649, and the length of the whole.
const (
	KeptKW  = 1 // AES key wrap of RFC 3394: 1 ‖ 40 bytes
	KeptGCM = 2 // 2 ‖ nonce(12) ‖ 32 bytes ‖ tag(16)
	KeptCBC = 3 // CBC with PKCS #7 padding, which alone shows no change: 3 ‖ IV(16) ‖ 48 bytes

	KeptKWLen, KeptGCMLen, KeptCBCLen = 1 + 40, 1 + 12 + 48, 1 + 16 + 48
)

// Kept accepts a secret as [hsm.Token.Import] returns it: 40 bytes, 56 if it is sealed on the host, or
// the length that its first byte says. Anything else is [hsm.ErrInput].
func Kept(b []byte) error {
	switch {
	case len(b) == HostSealedLen,
		len(b) == KeptKWLen && b[0] == KeptKW, len(b) == KeptGCMLen && b[0] == KeptGCM, len(b) == KeptCBCLen && b[0] == KeptCBC:
		return nil
	}
	return Wrapped(b)
}

// Import accepts an import that may succeed; anything else is [hsm.ErrInput].
func Import(i hsm.Import) error {
	if err := Peer(i.Ephemeral); err != nil {
		return err
	}
	return Wrapped(i.Wrapped)
}

// MACWrapped accepts the arguments of that method; anything else is [hsm.ErrInput].
func MACWrapped(wrapped, data []byte) error {
	if err := Kept(wrapped); err != nil {
		return err
	}
	return Data(data)
}

// Spec accepts a label of 1 to 64 bytes of UTF-8, a known usage and at most 16
// recipients on P-256; anything else is [hsm.ErrInput].
func Spec(spec hsm.KeySpec) error {
	if err := label(spec.Label); err != nil {
		return err
	}
	if spec.Usage.Kind().Name == "" {
		return fmt.Errorf("usage %d is unknown: %w", spec.Usage, hsm.ErrInput)
	}
	if len(spec.Recipients) > maxRecipients {
		return fmt.Errorf("%d recipients, at most %d: %w", len(spec.Recipients), maxRecipients, hsm.ErrInput)
	}
	for _, r := range spec.Recipients {
		if err := Peer(r); err != nil {
			return fmt.Errorf("recipient: %w", err)
		}
	}
	return nil
}

func label(s string) error {
	if s == "" || len(s) > maxLabel || !utf8.ValidString(s) {
		return fmt.Errorf("label of %d bytes, want 1 to %d of UTF-8: %w", len(s), maxLabel, hsm.ErrInput)
	}
	return nil
}

// Restore accepts a sealed copy that may be of the described key, and returns the key. The
// id of a pair comes from its public half. Anything else is [hsm.ErrInput].
func Restore(r hsm.Restore) (hsm.Key, error) {
	k := hsm.Key{ID: r.ID, Label: r.Spec.Label, Usage: r.Spec.Usage}
	if err := withoutRecipients(r.Spec); err != nil {
		return k, err
	}
	if err := sealed(r.Sealed); err != nil {
		return k, err
	}
	if !k.Usage.Pair() {
		if r.ID == (hsm.KeyID{}) || r.Public != nil {
			return k, fmt.Errorf("a secret key has an id and no public key: %w", hsm.ErrInput)
		}
		return k, Wrapped(r.Sealed[PointLen:])
	}
	public, id, err := ParsePublic(r.Public)
	if err == nil && (!k.Usage.Fits(public) || r.ID != (hsm.KeyID{}) && r.ID != id) {
		err = fmt.Errorf("public key is not one for %s, or of another id: %w", k.Usage, hsm.ErrInput)
	}
	k.ID, k.Public = id, r.Public
	return k, err
}

// sealed accepts a point followed by whole blocks of 8 bytes, as AES-KWP makes.
func sealed(s hsm.Sealed) error {
	_, err := ecdh.P256().NewPublicKey(s[:min(PointLen, len(s))])
	if wrapped := len(s) - PointLen; err != nil || wrapped < WrappedLen || wrapped%8 != 0 || len(s) > maxSealed {
		return fmt.Errorf("sealed copy of %d bytes: %w", len(s), hsm.ErrInput)
	}
	return nil
}

// withoutRecipients is Spec for an existing key, of which no copies are made.
func withoutRecipients(spec hsm.KeySpec) error {
	if len(spec.Recipients) > 0 {
		return fmt.Errorf("copies are made when a key is generated, not now: %w", hsm.ErrInput)
	}
	return Spec(spec)
}

// Adopt accepts a P-256 key for ECDH and returns it as it will be on the token. Anything
// else is [hsm.ErrInput].
func Adopt(spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	k := hsm.Key{Label: spec.Label, Usage: spec.Usage}
	if err := withoutRecipients(spec); err != nil {
		return k, err
	}
	if private == nil || private.Curve() != ecdh.P256() || spec.Usage != hsm.DeriveP256 {
		return k, fmt.Errorf("only a key on P-256 for ECDH is adopted: %w", hsm.ErrInput)
	}
	var err error
	k.Public, k.ID, err = Encode(private.PublicKey())
	return k, err
}

// Certificate accepts an X.509 certificate of at most 16 KiB whose public key has the id
// it is stored under, with a label of 1 to 64 bytes. Anything else is [hsm.ErrInput].
func Certificate(c hsm.Certificate) (*x509.Certificate, error) {
	if err := label(c.Label); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil || len(c.DER) > maxCert {
		return nil, fmt.Errorf("certificate of %d bytes: %v: %w", len(c.DER), err, hsm.ErrInput)
	}
	if id := keyID(cert.RawSubjectPublicKeyInfo); id != c.Key {
		return nil, fmt.Errorf("certificate is of key %s, not %s: %w", id, c.Key, hsm.ErrInput)
	}
	return cert, nil
}

// CertificateKey returns the id of the public key in an X.509 certificate. Bytes that are no
// certificate are [hsm.ErrInput].
func CertificateKey(der []byte) (id hsm.KeyID, err error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return id, fmt.Errorf("certificate of %d bytes: %v: %w", len(der), err, hsm.ErrInput)
	}
	return keyID(cert.RawSubjectPublicKeyInfo), nil
}
