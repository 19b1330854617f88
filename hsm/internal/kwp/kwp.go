// Package kwp wraps secrets and keys in software (PROTOCOL.md §4.1, [hsm.Sealed]): for the
// token in memory, for a module that cannot do it inside, and to check the results of a
// module.
package kwp

import (
	"crypto/aes"
	"crypto/ecdh"
	"crypto/sha256"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/kwp/subtle"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// KEK returns the key that wraps a secret on its way to a token: AES-256-ECB of the
// 32-byte context under the shared secret z, 32 bytes.
func KEK(z []byte, context [32]byte) ([]byte, error) {
	block, err := aes.NewCipher(z)
	if err != nil {
		return nil, fmt.Errorf("making KEK: %v: %w", err, hsm.ErrInput)
	}
	kek := make([]byte, len(context))
	for i := 0; i < len(kek); i += aes.BlockSize {
		block.Encrypt(kek[i:], context[i:])
	}
	return kek, nil
}

// Wrap is AES-KWP (RFC 5649) of a secret of 16 to 4096 bytes under a key of 32.
func Wrap(key, secret []byte) ([]byte, error) {
	k, err := subtle.NewKWP(key)
	if err != nil {
		return nil, fmt.Errorf("wrapping: %v: %w", err, hsm.ErrInput)
	}
	wrapped, err := k.Wrap(secret)
	if err != nil {
		return nil, fmt.Errorf("wrapping: %v: %w", err, hsm.ErrInput)
	}
	return wrapped, nil
}

// Unwrap reverses [Wrap] for a secret of 32 bytes; anything else is [hsm.ErrInput].
func Unwrap(key, wrapped []byte) ([]byte, error) {
	secret, err := unwrap(key, wrapped)
	if err != nil {
		return nil, err
	}
	if len(secret) != check.SecretLen {
		clear(secret)
		return nil, fmt.Errorf("unwrapping: secret of %d bytes, want %d: %w", len(secret), check.SecretLen, hsm.ErrInput)
	}
	return secret, nil
}

func unwrap(key, wrapped []byte) ([]byte, error) {
	k, err := subtle.NewKWP(key)
	if err != nil {
		return nil, fmt.Errorf("unwrapping: %v: %w", err, hsm.ErrInput)
	}
	secret, err := k.Unwrap(wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrapping: %v: %w", err, hsm.ErrInput)
	}
	return secret, nil
}

// Open unwraps the secret of i with the shared secret z.
func Open(z []byte, i hsm.Import) ([]byte, error) {
	kek, err := KEK(z, i.Context)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	return Unwrap(kek, i.Wrapped)
}

// Context returns the context of a sealed copy, as [hsm.Sealed] defines it. Both points
// are 65 bytes.
func Context(spec hsm.KeySpec, recipient, ephemeral []byte) [32]byte {
	text := append([]byte("countersign sealed key v1"), recipient...)
	text = append(append(text, ephemeral...), byte(spec.Usage))
	return sha256.Sum256(append(text, spec.Label...))
}

// Split divides a sealed copy, whose length check.Restore has checked.
func Split(s hsm.Sealed) (ephemeral, wrapped []byte) { return s[:check.PointLen], s[check.PointLen:] }

// Seal makes a sealed copy of a key, PKCS #8 or 32 bytes, with an ephemeral key that must
// not be used again.
func Seal(spec hsm.KeySpec, recipient *ecdh.PublicKey, ephemeral *ecdh.PrivateKey, key []byte) (hsm.Sealed, error) {
	z, err := ephemeral.ECDH(recipient)
	if err != nil {
		return nil, fmt.Errorf("sealing: %v: %w", err, hsm.ErrInput)
	}
	defer clear(z)
	point := ephemeral.PublicKey().Bytes()
	kek, err := KEK(z, Context(spec, recipient.Bytes(), point))
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	wrapped, err := Wrap(kek, key)
	return append(point, wrapped...), err
}

// Unseal opens a sealed copy with the recipient's key. A copy that does not open is
// [hsm.ErrInput].
func Unseal(spec hsm.KeySpec, recipient ecdh.KeyExchanger, s hsm.Sealed) ([]byte, error) {
	point, wrapped := Split(s)
	ephemeral, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %v: %w", err, hsm.ErrInput)
	}
	z, err := recipient.ECDH(ephemeral)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	defer clear(z)
	kek, err := KEK(z, Context(spec, recipient.PublicKey().Bytes(), point))
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	return unwrap(kek, wrapped)
}
