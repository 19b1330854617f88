package keylife

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/hsm"
	"countersign/protocol/derive"
)

// Rewrap returns a stored verifier under the wrap key in use, or nil if it already is.
// It compares the MACs of both, because the old one will be given up. A wrap key whose
// verifiers cannot leave it is [hsm.ErrUnsupported].
func Rewrap(ctx context.Context, keys *keyuse.Keys, verifier []byte, now time.Time) ([]byte, error) {
	ring := keys.Ring()
	to, err := ring.Current(keyring.Wrap, now)
	if err != nil || ring.OneOf(keyring.Wrap) {
		return nil, err
	}
	if is, err := IsUnder(ctx, keys, to, verifier); err != nil || is {
		return nil, err
	}
	err = fmt.Errorf("rewrapping a verifier: %w", keyring.ErrNoKey)
	for _, from := range ring.Accepted(keyring.Wrap, now)[1:] {
		move := hsm.Rewrap{From: from.ID, To: to.ID, Wrapped: verifier}
		wrapped, tried := keys.Token().Rewrap(ctx, move)
		if tried == nil {
			if err := sameVerifier(ctx, keys.Token(), move, wrapped); err != nil {
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

// sameVerifier compares a rewrapped verifier with the original. A difference is
// [hsm.ErrGarbled].
func sameVerifier(ctx context.Context, token hsm.Token, move hsm.Rewrap, wrapped []byte) error {
	input := derive.PasswordProofInput([32]byte{})
	before, err := token.MACWrapped(ctx, move.From, move.Wrapped, input)
	if err != nil {
		return fmt.Errorf("comparing a rewrapped verifier: %w", err)
	}
	after, err := token.MACWrapped(ctx, move.To, wrapped, input)
	if errors.Is(err, hsm.ErrInput) || err == nil && !hmac.Equal(before, after) {
		return fmt.Errorf("a rewrapped verifier differs: %w", hsm.ErrGarbled)
	}
	return err
}

// IsUnder reports whether a stored verifier is under a version of wrap.
func IsUnder(ctx context.Context, keys *keyuse.Keys, wrap keyring.Key, verifier []byte) (bool, error) {
	_, err := keys.Token().MACWrapped(ctx, wrap.ID, verifier, derive.PasswordProofInput([32]byte{}))
	if errors.Is(err, hsm.ErrInput) {
		return false, nil
	}
	return err == nil, err
}
