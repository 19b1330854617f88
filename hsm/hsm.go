// Package hsm defines the interface between the appliance and its hardware security
// module: the operations of a token, key usages and algorithms, and the errors that
// callers distinguish. Private keys never cross it, except in Adopt. hsm/pkcs11 implements
// it on a real token, and hsm/pool runs that in worker processes; hsm/memory serves unit
// tests. hsm/hsmtest is one test suite that every implementation passes.
package hsm

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
)

// Signer signs with keys that stay on a token.
type Signer interface {
	// Sign returns a signature of alg that was verified in software, with the public key whose
	// hash is key. It returns [ErrGarbled] and no signature if that fails, so no caller
	// verifies again. input is the digest, of exactly the length of the hash of alg; with
	// [EdDSA] it is the message itself, 0 to 64 KiB. Any other input is [ErrInput]; an alg
	// that does not fit the key is [ErrKey]. An ECDSA signature is r‖s, 64 or 96 bytes; an
	// EdDSA signature is R‖S, 64 bytes; an RSA signature is as long as the modulus.
	Sign(ctx context.Context, key KeyID, alg Algorithm, input []byte) ([]byte, error)
}

// Token is one PKCS#11 token, logged in. Its methods may be called concurrently. They
// honour the deadline of the context and return errors that wrap one of the sentinels
// below, or a context error. An operation for which the module lacks a mechanism returns
// [ErrUnsupported].
type Token interface {
	Signer
	// Decap returns the shared secret of a KEM, 32 bytes, for enc, the ephemeral key of a sender.
	// It does one ECDH with a [DeriveP256] key (RFC 9180 §4.1, PROTOCOL.md §2.3). Z leaves the
	// module only where that lets it out. A KEM that KEMs does not list is [ErrUnsupported].
	Decap(ctx context.Context, key KeyID, kem KEM, enc *ecdh.PublicKey) ([]byte, error)
	// KEMs lists the KEMs of Decap that the module can do, the preferred one first. It is empty
	// before the token was opened, and if the module can do none.
	KEMs() []KEM
	// MAC returns HMAC-SHA-256, 32 bytes, under a [MACKey] key over at most 64 KiB of data;
	// more is [ErrInput].
	MAC(ctx context.Context, key KeyID, data []byte) ([]byte, error)
	// Import takes a secret that was wrapped for the token and returns it wrapped for storage, 40
	// bytes by RFC 5649, or at most 65 in the form that the first byte says (docs/HSM.md); this
	// process never sees the secret. It is ECDH with the [DeriveP256] key i.Enrol, the
	// KEK from Z and i.Context, unwrap, and wrap with the [WrapKey] key i.Wrap (PROTOCOL.md
	// §4.1). A secret that does not unwrap is [ErrInput]. On a module without
	// CKM_AES_ECB_ENCRYPT_DATA it runs in the worker's memory, which a notice at start says.
	Import(ctx context.Context, i Import) (wrapped []byte, err error)
	// MACWrapped unwraps a secret that Import or Rewrap wrapped with the [WrapKey] key wrap, and
	// returns HMAC-SHA-256 of data under it, 32 bytes, in one round trip.
	// The secret is a session object inside the token, which is then destroyed. A secret that
	// does not unwrap is [ErrInput].
	MACWrapped(ctx context.Context, wrap KeyID, wrapped, data []byte) ([]byte, error)
	// Rewrap moves a secret that was wrapped with the [WrapKey] key r.From to the key r.To,
	// inside the token, and returns it wrapped as Import does. Nothing stays on the token. A secret
	// that does not unwrap is [ErrInput]; a key r.From whose CKA_UNWRAP_TEMPLATE does not
	// release secrets again is [ErrUnsupported]. The result cannot be verified here: callers
	// compare the MACs of both before they delete the old one.
	Rewrap(ctx context.Context, r Rewrap) (wrapped []byte, err error)
	// Keys lists the keys that this appliance can use: those that are sensitive, not extractable, and
	// for one usage, under any CKA_ID. It omits foreign objects.
	Keys(ctx context.Context) ([]Key, error)
	// Foreign lists the other key pairs that can sign or derive: those that have several usages or
	// can be extracted. The appliance keeps no such key; an operator may have one.
	Foreign(ctx context.Context) ([]Key, error)
	// Know remembers public keys, each as SubjectPublicKeyInfo in DER, while the token is open. The
	// methods then also find a private key whose public half is not on the token, if its use proves
	// that it belongs to one of them. Anything that is no public key is [ErrInput].
	Know(ctx context.Context, publics [][]byte) error
	// Objects lists every private and secret key object on the token, including foreign ones,
	// with the attributes that the token reports. An object that cannot be read is listed with
	// what could be read.
	Objects(ctx context.Context) ([]Object, error)
	Keeper
}

// Keeper changes the contents of a token. Its methods never overwrite anything. A method
// that returns [ErrUnavailable] may have succeeded.
type Keeper interface {
	// Generate makes a key on the token and a sealed copy of it for each of the spec's
	// recipients. A label that is taken is [ErrExists].
	Generate(ctx context.Context, spec KeySpec) (Key, error)
	// Restore puts a key on the token from a sealed copy. A copy that does not open, or opens
	// to another key than r.Public, is [ErrInput] and leaves nothing behind; a kind of key
	// that the module cannot unwrap is [ErrUnsupported]; a label or id that is taken is
	// [ErrExists].
	Restore(ctx context.Context, r Restore) (Key, error)
	// Adopt puts a [DeriveP256] key from memory on the token, so that sealed copies made for
	// it can be restored there. It is for the recovery from a disaster only. The key cannot be
	// extracted again.
	Adopt(ctx context.Context, spec KeySpec, private *ecdh.PrivateKey) (Key, error)
	// Destroy removes a key from the token permanently: both halves of a pair, and its
	// certificates. An id that is unknown is [ErrKey]. One that is not unique is [ErrExists]:
	// nothing is removed, and the error does not pass for that of a key that is gone.
	Destroy(ctx context.Context, key KeyID) error
	// StoreCertificate puts an X.509 certificate on the token, where other tools find it.
	// Storing the same certificate again is no error and no change.
	StoreCertificate(ctx context.Context, c Certificate) error
	// Certificates lists the certificates that StoreCertificate may have stored.
	Certificates(ctx context.Context) ([]Certificate, error)
}

// The errors that callers distinguish. hsm/pkcs11 maps the return codes of PKCS#11 to
// them.
var (
	// ErrUnavailable: the token cannot be reached or did not answer in time; a later attempt
	// may succeed.
	ErrUnavailable = errors.New("HSM unavailable")
	// ErrGarbled: the token's answer is wrong: it has the wrong length, or is a signature that
	// does not verify. It wraps [ErrUnavailable].
	ErrGarbled = fmt.Errorf("HSM gave a wrong answer: %w", ErrUnavailable)
	// ErrBusy: more calls wait than can be answered in time. Nothing was done; an attempt a
	// moment later may succeed.
	ErrBusy = errors.New("HSM is busy")
	// ErrLocked: the token has no PIN yet. It wraps [ErrUnavailable].
	ErrLocked = fmt.Errorf("HSM waits for its PIN: %w", ErrUnavailable)
	// ErrPIN: the token refused the PIN, or the PIN is locked or expired. Only an
	// administrator may try again.
	ErrPIN = errors.New("HSM refused the PIN")
	// ErrKey: the key does not exist, or is not for this operation.
	ErrKey = errors.New("no such key for this use")
	// ErrExists: the token already has a key with this label or id.
	ErrExists = errors.New("key exists already")
	// ErrInput: the arguments of the caller are bad (a digest of 20 bytes, say).
	ErrInput = errors.New("bad input for the HSM")
	// ErrUnsupported: the module cannot do the operation for any caller. The text names the
	// mechanism (CKM_…) and what it blocks.
	ErrUnsupported = errors.New("the module lacks a mechanism")
)

type newWork struct{}

// NewWork marks calls that begin something. When a token is overloaded they are refused
// with [ErrBusy] first, so that work under way can finish: work that is refused halfway
// was in vain.
func NewWork(ctx context.Context) context.Context { return context.WithValue(ctx, newWork{}, true) }

// IsNewWork reports whether ctx comes from [NewWork].
func IsNewWork(ctx context.Context) bool { return ctx.Value(newWork{}) != nil }
