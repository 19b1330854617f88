package keyring

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/message"
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
		what := derive.PasswordImport{Root: root.Point.RootID(), Ephemeral: i.Point, Enrol: enrol.Point, SigningKey: i.SigningKey}
		wrapped, err = r.token.Import(ctx, hsm.Import{
			Enrol: enrol.ID, Wrap: wrap.ID, Ephemeral: i.Ephemeral, Context: what.Context(), Wrapped: i.Wrapped,
		})
		if !errors.Is(err, hsm.ErrInput) {
			return wrapped, err
		}
	}
	return nil, fmt.Errorf("importing a password verifier: %w", err)
}

// CheckVerifier tells whether proof begins the HMAC-SHA-256 of a stored verifier's
// input, made inside the token. A verifier that was not wrapped anew yet is under an
// earlier wrap key, so each that is accepted is tried; one that fits none is
// [hsm.ErrInput]. Where the proof is wrong the token is asked again, so that none of
// its errors counts as somebody's wrong password.
func (r *Keyring) CheckVerifier(ctx context.Context, stored Verifier, proof []byte) (right bool, err error) {
	err = fmt.Errorf("key %q: %w", Wrap, ErrNoKey)
	for _, wrap := range r.live.Load().acceptedOf(Wrap, time.Now()) {
		ask := func() ([]byte, error) { return r.token.MACWrapped(ctx, wrap.ID, stored.Wrapped, stored.Input) }
		var mac []byte
		if mac, err = ask(); errors.Is(err, hsm.ErrInput) {
			continue
		}
		if err == nil && !begins(mac, proof) {
			mac, err = agreed(ask, mac)
		}
		return err == nil && begins(mac, proof), err
	}
	return false, err
}

func begins(mac, proof []byte) bool {
	return len(proof) == message.ProofSize && hmac.Equal(mac[:message.ProofSize], proof)
}

// Verifier is a stored password verifier, 40 bytes, and what it is to MAC.
type Verifier struct{ Wrapped, Input []byte }

// Rewrap gives a stored verifier under the wrap key in use, nil where it is that
// already. It is handed on only when both make the same MAC, for the old one is given up
// then. A wrap key that does not let its verifiers go is [hsm.ErrUnsupported].
func (r *Keyring) Rewrap(ctx context.Context, verifier []byte, now time.Time) ([]byte, error) {
	is, err := r.IsUnderCurrentWrap(ctx, verifier, now)
	if err != nil || is {
		return nil, err
	}
	v := r.live.Load()
	to, err := v.current(Wrap, now)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("wrapping a verifier anew: %w", ErrNoKey)
	for _, from := range v.acceptedOf(Wrap, now)[1:] {
		move := hsm.Rewrap{From: from.ID, To: to.ID, Wrapped: verifier}
		wrapped, tried := r.token.Rewrap(ctx, move)
		if tried == nil {
			if err := r.sameVerifier(ctx, move, wrapped); err != nil {
				return nil, err
			}
			return wrapped, nil
		}
		if err = tried; !errors.Is(err, hsm.ErrInput) {
			return nil, err
		}
	}
	return nil, err
}

// sameVerifier holds a verifier that was wrapped anew to the one before. Another is
// [hsm.ErrGarbled].
func (r *Keyring) sameVerifier(ctx context.Context, move hsm.Rewrap, wrapped []byte) error {
	input := derive.PasswordProofInput([32]byte{})
	before, err := r.token.MACWrapped(ctx, move.From, move.Wrapped, input)
	if err != nil {
		return fmt.Errorf("comparing a verifier that was wrapped anew: %w", err)
	}
	after, err := r.token.MACWrapped(ctx, move.To, wrapped, input)
	if errors.Is(err, hsm.ErrInput) || err == nil && !hmac.Equal(before, after) {
		return fmt.Errorf("a verifier that was wrapped anew is another: %w", hsm.ErrGarbled)
	}
	return err
}

// IsUnderCurrentWrap tells whether a stored verifier is under the wrap key in use. The
// token is asked only where there is another that it could be under.
func (r *Keyring) IsUnderCurrentWrap(ctx context.Context, verifier []byte, now time.Time) (bool, error) {
	v := r.live.Load()
	in, err := v.current(Wrap, now)
	if err != nil || v.remaining(Wrap) == 1 {
		return err == nil, err
	}
	return r.IsUnder(ctx, in, verifier)
}

// IsUnder tells whether a stored verifier is under a version of wrap.
func (r *Keyring) IsUnder(ctx context.Context, wrap Key, verifier []byte) (bool, error) {
	_, err := r.token.MACWrapped(ctx, wrap.ID, verifier, derive.PasswordProofInput([32]byte{}))
	if errors.Is(err, hsm.ErrInput) {
		return false, nil
	}
	return err == nil, err
}

// OneOf reports whether no more than one version of a key is left: nothing can be under
// another then.
func (r *Keyring) OneOf(name string) bool { return r.live.Load().remaining(name) <= 1 }

// remaining counts the versions of a key that are not destroyed.
func (v *ring) remaining(name string) (n int) {
	for _, k := range v.keys[name] {
		if k.DestroyedAt.IsZero() {
			n++
		}
	}
	return n
}

// Held is a version whose key is on the token, whether it is accepted or not; ok is false
// where there is none.
func (r *Keyring) Held(name string, version uint64) (k Key, ok bool) {
	k, ok = r.live.Load().find(name, version)
	return k, ok && k.OnToken && k.DestroyedAt.IsZero()
}
