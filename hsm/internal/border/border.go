// Package border holds the checks every token makes on its caller's arguments
// before a module sees them. Modules are lenient (SoftHSM signs a digest of any
// length with CKM_ECDSA), so the border is not.
package border

import (
	"crypto/ecdh"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"unicode/utf8"

	"countersign/hsm"
)

// Sizes in bytes.
const (
	DigestLen  = sha256.Size // what Sign takes
	PointLen   = 65          // uncompressed SEC1 point on P-256
	SecretLen  = 32          // Z of a P-256 ECDH, a MAC, a MAC or wrap key
	WrappedLen = 40          // AES-KWP (RFC 5649) of a secret of 32
	MaxData    = 64 << 10    // what MAC takes at most
	maxLabel   = 64
)

// Digest accepts a SHA-256 digest; anything else is [hsm.ErrInput].
func Digest(d []byte) error {
	if len(d) != DigestLen {
		return fmt.Errorf("digest of %d bytes, want %d: %w", len(d), DigestLen, hsm.ErrInput)
	}
	return nil
}

// Data accepts what may be authenticated, at most [MaxData] bytes; more is
// [hsm.ErrInput].
func Data(d []byte) error {
	if len(d) > MaxData {
		return fmt.Errorf("data of %d bytes, at most %d: %w", len(d), MaxData, hsm.ErrInput)
	}
	return nil
}

// Peer accepts a public key on P-256, which crypto/ecdh has proven to be a
// point of the curve; anything else is [hsm.ErrInput].
func Peer(peer *ecdh.PublicKey) error {
	if peer == nil || peer.Curve() != ecdh.P256() {
		return fmt.Errorf("peer is not a point on P-256: %w", hsm.ErrInput)
	}
	return nil
}

// Wrapped accepts what may be the AES-KWP of 32 bytes, which is 40 bytes long;
// anything else is [hsm.ErrInput].
func Wrapped(b []byte) error {
	if len(b) != WrappedLen {
		return fmt.Errorf("wrapped secret of %d bytes, want %d: %w", len(b), WrappedLen, hsm.ErrInput)
	}
	return nil
}

// Import accepts an import that may succeed; anything else is [hsm.ErrInput].
func Import(i hsm.Import) error {
	if err := Peer(i.Ephemeral); err != nil {
		return err
	}
	return Wrapped(i.Wrapped)
}

// MACWrapped accepts the arguments of the method of that name; anything else
// is [hsm.ErrInput].
func MACWrapped(wrapped, data []byte) error {
	if err := Wrapped(wrapped); err != nil {
		return err
	}
	return Data(data)
}

// Spec accepts a label of 1 to 64 bytes of UTF-8 and a known usage; anything
// else is [hsm.ErrInput].
func Spec(spec hsm.KeySpec) error {
	if spec.Label == "" || len(spec.Label) > maxLabel || !utf8.ValidString(spec.Label) {
		return fmt.Errorf("label of %d bytes, want 1 to %d of UTF-8: %w", len(spec.Label), maxLabel, hsm.ErrInput)
	}
	if spec.Usage < hsm.SignP256 || spec.Usage > hsm.WrapKey {
		return fmt.Errorf("usage %d is unknown: %w", spec.Usage, hsm.ErrInput)
	}
	return nil
}

// KeyID returns the identifier of a P-256 key pair, the first 20 bytes of
// SHA-256 over its SubjectPublicKeyInfo (RFC 5480). A point that is not 65
// bytes or not on the curve is an error.
func KeyID(point []byte) (hsm.KeyID, error) {
	var id hsm.KeyID
	public, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return id, fmt.Errorf("reading public point: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return id, fmt.Errorf("encoding public key: %w", err)
	}
	sum := sha256.Sum256(spki)
	copy(id[:], sum[:])
	return id, nil
}
