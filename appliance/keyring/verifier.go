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
	wrap, err := r.Current(Wrap, now)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("key %q: %w", Enrol, ErrNoKey)
	for _, enrol := range r.keys[Enrol] {
		if !enrol.valid(now) {
			continue
		}
		what := protocol.PasswordImport{Root: r.Root().RootID(), Ephemeral: i.Point, Enrol: enrol.Point, SigningKey: i.SigningKey}
		wrapped, err = r.token.Import(ctx, hsm.Import{
			Enrol: enrol.ID, Wrap: wrap.ID, Ephemeral: i.Ephemeral, Context: what.Context(), Wrapped: i.Wrapped,
		})
		if !errors.Is(err, hsm.ErrInput) {
			return wrapped, err
		}
	}
	return nil, fmt.Errorf("importing a password verifier: %w", err)
}

// CheckVerifier tells whether proof begins HMAC-SHA-256 of input under a stored
// verifier, made inside the token. Where it does not, the token is asked again,
// so that none of its errors counts as somebody's wrong password.
func (r *Keyring) CheckVerifier(ctx context.Context, verifier, input, proof []byte) (right bool, err error) {
	wrap, err := r.Current(Wrap, time.Time{})
	if err != nil {
		return false, err
	}
	ask := func() ([]byte, error) { return r.token.MACWrapped(ctx, wrap.ID, verifier, input) }
	mac, err := ask()
	if err == nil && !begins(mac, proof) {
		mac, err = agreed(ask, mac)
	}
	return err == nil && begins(mac, proof), err
}

func begins(mac, proof []byte) bool {
	return len(proof) == protocol.ProofSize && hmac.Equal(mac[:protocol.ProofSize], proof)
}
