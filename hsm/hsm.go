// Package hsm is the contract between the appliance and its hardware security
// module: what a token can do, what names a key has, and which errors a caller
// can tell apart. Private keys never cross it, save by Adopt. The real token is
// hsm/pkcs11, reached through hsm/worker; hsm/memory serves unit tests;
// hsm/hsmtest is the contract written as one suite that runs on all of them.
package hsm

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
)

// Signer signs with keys that stay on a token.
type Signer interface {
	// Sign returns a signature of alg that was verified in software, with the public
	// key that key is the hash of; one that does not verify is [ErrGarbled] and never
	// handed on, so no caller verifies again. input is the digest, of exactly the length of alg's hash;
	// with [EdDSA] it is the message itself, 0 to 64 KiB. Anything else is
	// [ErrInput], an alg that the key is not for is [ErrKey]. ECDSA comes as r‖s,
	// 64 or 96 bytes, EdDSA as R‖S, 64 bytes, RSA in the length of its modulus.
	Sign(ctx context.Context, key KeyID, alg Algorithm, input []byte) ([]byte, error)
}

// Token is one PKCS#11 token, logged in. Every method may be called by many
// goroutines at once, honours the context's deadline and returns an error that
// wraps one of the sentinels below, or a context error. What the module has no
// mechanism for is [ErrUnsupported].
type Token interface {
	Signer
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
	// [ErrInput]. On a module without CKM_AES_ECB_ENCRYPT_DATA it runs in the
	// worker's memory, which a notice at start says.
	Import(ctx context.Context, i Import) (wrapped []byte, err error)
	// MACWrapped unwraps a secret that [WrapKey] key wrap keeps, 40 bytes for one
	// of 32, and returns HMAC-SHA-256 of data under it, 32 bytes, in one round
	// trip. The secret is a session object inside the token and destroyed
	// afterwards. What does not unwrap is [ErrInput].
	MACWrapped(ctx context.Context, wrap KeyID, wrapped, data []byte) ([]byte, error)
	// Rewrap moves a secret that [WrapKey] key r.From keeps to the one r.To, inside
	// the token, and returns it wrapped anew, 40 bytes. Nothing stays on the token.
	// What does not unwrap is [ErrInput]; a key r.From whose CKA_UNWRAP_TEMPLATE lets
	// nothing out again is [ErrUnsupported]. Nothing here can verify the outcome:
	// compare the MACs of both before the old one is given up.
	Rewrap(ctx context.Context, r Rewrap) (wrapped []byte, err error)
	// Keys lists the keys this appliance can use; foreign objects are left out.
	Keys(ctx context.Context) ([]Key, error)
	// Objects lists every private and secret key object on the token, those of
	// others too, with the attributes that it tells. An object that cannot be read
	// is listed with what could be.
	Objects(ctx context.Context) ([]Object, error)
	Keeper
}

// Keeper changes what is on a token. None of its methods overwrites anything;
// one whose error is [ErrUnavailable] may have been done all the same.
type Keeper interface {
	// Generate makes a new key on the token and, for each of the spec's
	// recipients, a sealed copy of it. A label that is taken is [ErrExists].
	Generate(ctx context.Context, spec KeySpec) (Key, error)
	// Restore puts a key on the token from a sealed copy. A copy that does not
	// open, or opens to another key than r.Public, is [ErrInput] and leaves
	// nothing behind; one of a kind that the module cannot have by unwrapping is
	// [ErrUnsupported]; a label or id that is taken is [ErrExists].
	Restore(ctx context.Context, r Restore) (Key, error)
	// Adopt puts a [DeriveP256] key from memory onto the token, so that sealed
	// copies made for it can be restored there: for the recovery from a disaster
	// only. It is never to be extracted again.
	Adopt(ctx context.Context, spec KeySpec, private *ecdh.PrivateKey) (Key, error)
	// Destroy removes a key from the token for good: both halves of a pair, and
	// certificates of it. An id that is unknown or not unique is [ErrKey].
	Destroy(ctx context.Context, key KeyID) error
	// StoreCertificate puts an X.509 certificate on the token, for the tools of
	// others to find. The same certificate again is no error and no change.
	StoreCertificate(ctx context.Context, c Certificate) error
	// Certificates lists the certificates that StoreCertificate may have stored.
	Certificates(ctx context.Context) ([]Certificate, error)
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
	// ErrExists: a key with this label or id is on the token already.
	ErrExists = errors.New("key exists already")
	// ErrInput: the caller's arguments are bad (a digest of 20 bytes, say).
	ErrInput = errors.New("bad input for the HSM")
	// ErrUnsupported: this module cannot do it, whoever asks. The text names the
	// mechanism (CKM_…) and what that blocks.
	ErrUnsupported = errors.New("the module lacks a mechanism")
)

type newWork struct{}

// NewWork marks calls that begin something. When more is asked of a token than it
// can do, they are refused with [ErrBusy] first, so that what was begun before can
// end: work that is refused half way was done for nothing.
func NewWork(ctx context.Context) context.Context { return context.WithValue(ctx, newWork{}, true) }

// IsNewWork tells what [NewWork] marked.
func IsNewWork(ctx context.Context) bool { return ctx.Value(newWork{}) != nil }
