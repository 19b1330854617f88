// Package hostseal keeps a password verifier outside the token, sealed under a key that only the token
// can compute. It is the last resort for a module that cannot unwrap a secret to a session key
// (`hsm.password_check = "host"`): the caller holds the verifier in memory for a moment.
//
// A sealed secret is a salt of 16 random bytes and the AES-KWP (RFC 5649) of the secret under
//
//	K = HMAC-SHA-256(H, "OA1 pw seal v1" || salt)
//
// where H is an HMAC key of the token that serves nothing else. Each secret has another salt, so one K
// opens one secret.
package hostseal

import (
	"crypto/rand"
	"fmt"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

const (
	label   = "OA1 pw seal v1"
	saltLen = check.HostSealedLen - check.WrappedLen
)

// MAC is HMAC-SHA-256 under the token's key H, 32 bytes.
type MAC func(data []byte) ([]byte, error)

// Seal seals a secret of 32 bytes, to 56 bytes. It returns the errors of mac.
func Seal(mac MAC, secret []byte) ([]byte, error) {
	salt := make([]byte, saltLen, check.HostSealedLen)
	_, _ = rand.Read(salt) // never fails, see crypto/rand.Read
	k, err := mac(input(salt))
	if err != nil {
		return nil, err
	}
	defer clear(k)
	wrapped, err := kwp.Wrap(k, secret)
	return append(salt, wrapped...), err
}

// Open returns the secret, which the caller clears. Bytes that do not open are [hsm.ErrInput]. It also
// returns the errors of mac.
func Open(mac MAC, sealed []byte) ([]byte, error) {
	if len(sealed) != check.HostSealedLen {
		return nil, fmt.Errorf("secret sealed on the host has %d bytes, want %d: %w", len(sealed), check.HostSealedLen, hsm.ErrInput)
	}
	k, err := mac(input(sealed[:saltLen]))
	if err != nil {
		return nil, err
	}
	defer clear(k)
	return kwp.Unwrap(k, sealed[saltLen:])
}

func input(salt []byte) []byte { return append([]byte(label), salt...) }
