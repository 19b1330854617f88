// Package hsm is the contract between the appliance and its hardware security
// module: what a token can do, what names a key has, and which errors a caller
// can tell apart. Private keys never cross it. The real token is hsm/pkcs11,
// reached through hsm/worker; hsm/memory serves unit tests; hsm/hsmtest is the
// contract written as one suite that runs on all of them.
package hsm

import (
	"context"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"fmt"
)

// Token is one PKCS#11 token, logged in. Every method may be called by many
// goroutines at once, honours the context's deadline and returns an error that
// wraps one of the sentinels below, or a context error.
type Token interface {
	// Sign signs a 32-byte SHA-256 digest with a [SignP256] key and returns
	// r‖s, 64 bytes. The caller verifies it before it leaves the appliance.
	Sign(ctx context.Context, key KeyID, digest []byte) ([]byte, error)
	// Derive does one ECDH with a [DeriveP256] key and returns the shared
	// secret Z, the 32-byte x coordinate (SP 800-56A §5.7.1.2).
	Derive(ctx context.Context, key KeyID, peer *ecdh.PublicKey) ([]byte, error)
	// MAC returns HMAC-SHA-256, 32 bytes, under a [MACKey] key over at most
	// 64 KiB of data; more is [ErrInput].
	MAC(ctx context.Context, key KeyID, data []byte) ([]byte, error)
	// Import takes a secret that was wrapped for the token and returns it wrapped
	// for keeping, without its ever being in this process: ECDH with the
	// [DeriveP256] key i.Enrol, the KEK from Z and i.Context, unwrap, and wrap
	// with the [WrapKey] key i.Wrap (PROTOCOL.md §4.1). What does not unwrap is
	// [ErrInput]. On a module without the mechanisms it runs in the worker's
	// memory, which a notice at start says.
	Import(ctx context.Context, i Import) (wrapped []byte, err error)
	// MACWrapped unwraps a secret that [WrapKey] key wrap keeps, 40 bytes for one
	// of 32, and returns HMAC-SHA-256 of data under it, 32 bytes, in one round
	// trip. The secret is a session object inside the token and destroyed
	// afterwards. What does not unwrap is [ErrInput].
	MACWrapped(ctx context.Context, wrap KeyID, wrapped, data []byte) ([]byte, error)
	// Generate makes a new key on the token. A label that is taken is an
	// error wrapping [ErrExists]; nothing is overwritten.
	Generate(ctx context.Context, spec KeySpec) (Key, error)
	// Keys lists the keys this appliance can use; foreign objects are left out.
	Keys(ctx context.Context) ([]Key, error)
}

// KeyID is the CKA_ID of a key: SHA-256(SubjectPublicKeyInfo)[0:20] for a key
// pair, 20 random bytes for a secret key.
type KeyID [20]byte

// ParseKeyID reads the 40 hexadecimal digits that [KeyID.String] writes.
func ParseKeyID(s string) (KeyID, error) {
	var id KeyID
	if hex.DecodedLen(len(s)) != len(id) {
		return id, fmt.Errorf("key id %q: want %d hexadecimal digits", s, hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, fmt.Errorf("key id %q: %w", s, err)
	}
	return id, nil
}

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// Usage is the one thing a key may do; a key has exactly one.
type Usage uint8

// The usages, each with its PKCS#11 key type and mechanism.
const (
	SignP256   Usage = iota + 1 // CKK_EC, CKM_ECDSA
	DeriveP256                  // CKK_EC, CKM_ECDH1_DERIVE
	MACKey                      // CKK_GENERIC_SECRET, CKM_SHA256_HMAC
	WrapKey                     // CKK_AES 256 bits, CKM_AES_KEY_WRAP_PAD
)

// String names the usage as the administrator's commands print it.
func (u Usage) String() string {
	switch u {
	case SignP256:
		return "sign-p256"
	case DeriveP256:
		return "derive-p256"
	case MACKey:
		return "mac"
	case WrapKey:
		return "wrap"
	}
	return fmt.Sprintf("usage(%d)", uint8(u))
}

// Import is a 32-byte secret on its way into the token.
type Import struct {
	Enrol     KeyID           // DeriveP256 key that it was wrapped for
	Wrap      KeyID           // WrapKey key that is to keep it
	Ephemeral *ecdh.PublicKey // of whoever wrapped it
	Context   [32]byte        // KEK = AES-256-ECB(key = Z, Context)
	Wrapped   []byte          // AES-KWP (RFC 5649) under the KEK, 40 bytes
}

// KeySpec asks for a new key.
type KeySpec struct {
	Label string // CKA_LABEL, "name@version", 1 to 64 bytes
	Usage Usage
}

// Key is what may be known of a key outside the token.
type Key struct {
	ID     KeyID
	Label  string
	Usage  Usage
	Public []byte // 65-byte uncompressed SEC1 point of a key pair, else nil
}

// Sentinels. Which PKCS#11 return codes lead to which is written in hsm/pkcs11.
var (
	// ErrUnavailable: the token cannot be reached or did not answer in time;
	// another attempt later may succeed.
	ErrUnavailable = errors.New("HSM unavailable")
	// ErrGarbled: the token's answer cannot be right: it has the wrong length, or
	// is a signature that does not verify. It wraps [ErrUnavailable].
	ErrGarbled = fmt.Errorf("HSM gave a wrong answer: %w", ErrUnavailable)
	// ErrBusy: more calls wait than can be answered in time. Nothing was done;
	// another attempt a moment later may succeed.
	ErrBusy = errors.New("HSM is busy")
	// ErrLocked: nobody has given the PIN yet. It wraps [ErrUnavailable].
	ErrLocked = fmt.Errorf("HSM waits for its PIN: %w", ErrUnavailable)
	// ErrPIN: the token refused the PIN, or it is locked or expired. Never
	// to be tried again without an administrator.
	ErrPIN = errors.New("HSM refused the PIN")
	// ErrKey: no such key, or a key not meant for this operation.
	ErrKey = errors.New("no such key for this use")
	// ErrExists: a key with this label is on the token already.
	ErrExists = errors.New("key exists already")
	// ErrInput: the caller's arguments are bad (a digest of 20 bytes, say).
	ErrInput = errors.New("bad input for the HSM")
)
