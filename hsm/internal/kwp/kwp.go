// Package kwp is the wrapping of password verifiers in software, PROTOCOL.md
// §4.1: for the token in memory, and for a module that cannot do it inside.
package kwp

import (
	"crypto/aes"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/kwp/subtle"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// KEK is the key that wraps a secret on its way to the token: AES-256-ECB of
// the 32-byte context under the shared secret z, 32 bytes.
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

// Wrap is AES-KWP (RFC 5649) of a secret of 32 bytes under a key of 32, 40
// bytes long.
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

// Unwrap reverses [Wrap]. What does not come out as 32 bytes is [hsm.ErrInput].
func Unwrap(key, wrapped []byte) ([]byte, error) {
	k, err := subtle.NewKWP(key)
	if err != nil {
		return nil, fmt.Errorf("unwrapping: %v: %w", err, hsm.ErrInput)
	}
	secret, err := k.Unwrap(wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrapping: %v: %w", err, hsm.ErrInput)
	}
	if len(secret) != border.SecretLen {
		clear(secret)
		return nil, fmt.Errorf("unwrapping: secret of %d bytes, want %d: %w", len(secret), border.SecretLen, hsm.ErrInput)
	}
	return secret, nil
}

// Open unwraps what i brings with the shared secret z.
func Open(z []byte, i hsm.Import) ([]byte, error) {
	kek, err := KEK(z, i.Context)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	return Unwrap(kek, i.Wrapped)
}
