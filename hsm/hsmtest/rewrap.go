package hsmtest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"countersign/hsm"
)

// testRewrap moves a secret from one key to another, and on to a third.
func (s *suite) testRewrap(t *testing.T) {
	keys := []hsm.Key{s.key(t, hsm.WrapKey), s.generate(t, "rewrap@2", hsm.WrapKey), s.generate(t, "rewrap@3", hsm.WrapKey)}
	secret := newSecret()
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("x"))
	want := mac.Sum(nil)
	kept := s.importSecret(t, keys[0].ID, secret)
	for i, to := range keys[1:] {
		moved, err := s.token.Rewrap(t.Context(), hsm.Rewrap{From: keys[i].ID, To: to.ID, Wrapped: kept})
		must(t, err)
		if len(moved) != 40 || bytes.Equal(moved, kept) {
			t.Fatalf("rewrapped to %x", moved)
		}
		for id, wrapped := range map[hsm.KeyID][]byte{keys[i].ID: kept, to.ID: moved} {
			if got, err := s.token.MACWrapped(t.Context(), id, wrapped, []byte("x")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("MACWrapped by %s = %x, %v; want %x", id, got, err, want)
			}
		}
		if _, err := s.token.MACWrapped(t.Context(), keys[i].ID, moved, nil); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("rewrapped, and under the key before: %v, want ErrInput", err)
		}
		kept = moved
	}
}

func (s *suite) testRewrapRefused(t *testing.T) {
	from, to := s.key(t, hsm.WrapKey).ID, s.generate(t, "rewrap-refused", hsm.WrapKey).ID
	kept := s.importSecret(t, from, newSecret())
	bad := append(flips(kept), nil, kept[:32], append(slices.Clone(kept), make([]byte, 8)...))
	for _, b := range bad {
		if moved, err := s.token.Rewrap(t.Context(), hsm.Rewrap{From: from, To: to, Wrapped: b}); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%x: %x, %v, want ErrInput", b, moved, err)
		}
	}
	if _, err := s.token.Rewrap(t.Context(), hsm.Rewrap{From: to, To: from, Wrapped: kept}); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("from another key: %v, want ErrInput", err)
	}
	if _, err := s.token.Rewrap(t.Context(), hsm.Rewrap{From: from, To: to, Wrapped: kept}); err != nil {
		t.Errorf("Rewrap after the refusals: %v", err)
	}
}
