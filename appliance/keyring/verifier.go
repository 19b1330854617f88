package keyring

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/protocol"
)

// VerifierImport is a password verifier as a phone sends it, PROTOCOL.md §4.1.
type VerifierImport struct {
	Ephemeral  *ecdh.PublicKey
	Point      protocol.PublicKey // Ephemeral, compressed
	SigningKey protocol.PublicKey
	Wrapped    []byte // 40 bytes
}

// ImportVerifier moves a verifier from the enrol key to the wrap key, inside the
// token, and returns the 40 bytes to keep. A phone may have wrapped it for an
// older enrol key that is still valid, so each is tried; one that fits none is
// [hsm.ErrInput].
func (r *Keyring) ImportVerifier(ctx context.Context, i VerifierImport, now time.Time) (wrapped []byte, err error) {
	v := r.live.Load()
	wrap, err := v.current(Wrap, now)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("key %q: %w", Enrol, ErrNoKey)
	for _, enrol := range v.acceptedOf(Enrol, now) {
		root, known := v.find(Root, enrol.Root)
		if !enrol.dated(now) || !known {
			continue
		}
		what := protocol.PasswordImport{Root: root.Point.RootID(), Ephemeral: i.Point, Enrol: enrol.Point, SigningKey: i.SigningKey}
		wrapped, err = r.token.Import(ctx, hsm.Import{
			Enrol: enrol.ID, Wrap: wrap.ID, Ephemeral: i.Ephemeral, Context: what.Context(), Wrapped: i.Wrapped,
		})
		if !errors.Is(err, hsm.ErrInput) {
			return wrapped, err
		}
	}
	return nil, fmt.Errorf("importing a password verifier: %w", err)
}

// CheckVerifier is HMAC-SHA-256 of input under a stored verifier, made inside the
// token in one round trip. A verifier that was not wrapped anew yet is under an earlier
// wrap key, so each that is accepted is tried; one that fits none is [hsm.ErrInput].
func (r *Keyring) CheckVerifier(ctx context.Context, stored Verifier, now time.Time) (mac []byte, err error) {
	err = fmt.Errorf("key %q: %w", Wrap, ErrNoKey)
	for _, wrap := range r.live.Load().acceptedOf(Wrap, now) {
		mac, err = r.token.MACWrapped(ctx, wrap.ID, stored.Wrapped, stored.Input)
		if !errors.Is(err, hsm.ErrInput) {
			return mac, err
		}
	}
	return nil, err
}

// Verifier is a stored password verifier, 40 bytes, and what it is to MAC.
type Verifier struct{ Wrapped, Input []byte }

// Rewrapper is a token that can move a wrapped secret of 32 bytes from one [hsm.WrapKey]
// key to another without its leaving the token: C_UnwrapKey to a session object that may
// be wrapped, then C_WrapKey. What does not unwrap is [hsm.ErrInput].
type Rewrapper interface {
	Rewrap(ctx context.Context, r Rewrapping) (wrapped []byte, err error)
}

// Rewrapping is a secret on its way from one wrap key to another.
type Rewrapping struct {
	From, To hsm.KeyID
	Wrapped  []byte // 40 bytes
}

// ErrNoRewrap: the token cannot move a secret from one wrap key to another.
var ErrNoRewrap = errors.New("the token's driver cannot wrap a verifier anew")

// Rewrap gives a stored verifier under the wrap key in use, nil where it is that
// already. Errors are [ErrNoRewrap] and those of the token.
func (r *Keyring) Rewrap(ctx context.Context, verifier []byte, now time.Time) ([]byte, error) {
	is, err := r.IsUnderCurrentWrap(ctx, verifier, now)
	if err != nil || is {
		return nil, err
	}
	token, ok := r.token.(Rewrapper)
	if !ok {
		return nil, ErrNoRewrap
	}
	v := r.live.Load()
	to, err := v.current(Wrap, now)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("wrapping a verifier anew: %w", ErrNoKey)
	for _, from := range v.acceptedOf(Wrap, now)[1:] {
		wrapped, tried := token.Rewrap(ctx, Rewrapping{From: from.ID, To: to.ID, Wrapped: verifier})
		if !errors.Is(tried, hsm.ErrInput) {
			return wrapped, tried
		}
		err = tried
	}
	return nil, err
}

// IsUnderCurrentWrap tells whether a stored verifier is under the wrap key in use. The
// token is asked only where there is another that it could be under.
func (r *Keyring) IsUnderCurrentWrap(ctx context.Context, verifier []byte, now time.Time) (bool, error) {
	v := r.live.Load()
	in, err := v.current(Wrap, now)
	if err != nil || len(v.acceptedOf(Wrap, now)) == 1 {
		return err == nil, err
	}
	_, err = r.token.MACWrapped(ctx, in.ID, verifier, protocol.PasswordProofInput([32]byte{}))
	if errors.Is(err, hsm.ErrInput) {
		return false, nil
	}
	return err == nil, err
}

// OneOfEach tells that only one version of mac and one of wrap is accepted, so that
// nothing can be under another.
func (r *Keyring) OneOfEach(now time.Time) bool {
	v := r.live.Load()
	return len(v.acceptedOf(MAC, now)) == 1 && len(v.acceptedOf(Wrap, now)) == 1
}
