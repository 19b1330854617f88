package hsmtest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

func newSecret() []byte {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails, see crypto/rand.Read
	return secret
}

// WrapFor wraps a secret for the key enrol, as a phone does. The caller sets the key that
// stores it.
func WrapFor(tb testing.TB, enrol hsm.Key, secret []byte) hsm.Import {
	tb.Helper()
	i := hsm.Import{Enrol: enrol.ID, Context: sha256.Sum256([]byte("OA1 pw-enrol v1"))}
	public, err := enrol.ECDH()
	if err != nil {
		tb.Fatal(err)
	}
	ephemeral := newPeer(tb)
	i.Ephemeral = ephemeral.PublicKey()
	z, err := ephemeral.ECDH(public)
	if err != nil {
		tb.Fatal(err)
	}
	kek, err := kwp.KEK(z, i.Context)
	if err != nil {
		tb.Fatal(err)
	}
	if i.Wrapped, err = kwp.Wrap(kek, secret); err != nil {
		tb.Fatal(err)
	}
	return i
}

func (s *suite) wrapped(t *testing.T, secret []byte) hsm.Import {
	t.Helper()
	i := WrapFor(t, s.key(t, hsm.DeriveP256), secret)
	i.Wrap = s.key(t, hsm.WrapKey).ID
	return i
}

func (s *suite) importSecret(t *testing.T, wrap hsm.KeyID, secret []byte) []byte {
	t.Helper()
	i := s.wrapped(t, secret)
	i.Wrap = wrap
	kept, err := s.token.Import(t.Context(), i)
	must(t, err)
	if err := check.Kept(kept); err != nil {
		t.Fatal(err)
	}
	return kept
}

// testImport makes enough round trips for a leading zero byte in Z to be among them.
func (s *suite) testImport(t *testing.T) {
	wrap := s.key(t, hsm.WrapKey).ID
	for n := range 300 {
		secret := newSecret()
		kept := s.importSecret(t, wrap, secret)
		data := []byte(strings.Repeat("OA1 pw-proof v1", n%3))
		if n == 0 {
			data = make([]byte, 64<<10)
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write(data)
		got, err := s.token.MACWrapped(t.Context(), wrap, kept, data)
		if want := mac.Sum(nil); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("MACWrapped = %x, %v; want %x", got, err, want)
		}
	}
}

func (s *suite) testImportRefused(t *testing.T) {
	good := s.wrapped(t, newSecret())
	_, err := s.token.Import(t.Context(), good)
	must(t, err)
	bad := map[string]func(*hsm.Import){
		"no peer":      func(i *hsm.Import) { i.Ephemeral = nil },
		"another peer": func(i *hsm.Import) { i.Ephemeral = newPeer(t).PublicKey() },
		"context":      func(i *hsm.Import) { i.Context[31] ^= 1 },
		"nothing":      func(i *hsm.Import) { i.Wrapped = nil },
		"short":        func(i *hsm.Import) { i.Wrapped = i.Wrapped[:32] },
		"long":         func(i *hsm.Import) { i.Wrapped = append(slices.Clone(i.Wrapped), make([]byte, 8)...) },
	}
	for _, f := range flips(good.Wrapped) {
		bad["flipped "+string(rune('a'+len(bad)))] = func(i *hsm.Import) { i.Wrapped = f }
	}
	for name, change := range bad {
		i := good
		change(&i)
		if kept, err := s.token.Import(t.Context(), i); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %d bytes, %v, want ErrInput", name, len(kept), err)
		}
	}
	if _, err := s.token.Import(t.Context(), good); err != nil {
		t.Errorf("Import after the refusals: %v", err)
	}
}

func (s *suite) testMACWrappedRefused(t *testing.T) {
	wrap, other := s.key(t, hsm.WrapKey).ID, s.generate(t, "wrap@2", hsm.WrapKey)
	kept := s.importSecret(t, wrap, newSecret())
	if _, err := s.token.MACWrapped(t.Context(), other.ID, kept, nil); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("under another key: %v, want ErrInput", err)
	}
	bad := append(flips(kept), nil, kept[:32], append(slices.Clone(kept), make([]byte, 8)...))
	for _, b := range bad {
		if mac, err := s.token.MACWrapped(t.Context(), wrap, b, nil); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%x: %x, %v, want ErrInput", b, mac, err)
		}
	}
	if _, err := s.token.MACWrapped(t.Context(), wrap, kept, make([]byte, 64<<10+1)); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("64 KiB + 1: %v, want ErrInput", err)
	}
}

// testRewrap moves a secret from one key to another, and to a third.
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
		if check.Kept(moved) != nil || bytes.Equal(moved, kept) {
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
