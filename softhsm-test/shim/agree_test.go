package shim_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/softhsm-test/masks/profiles"
)

// TestAgreements: what a mask takes away from the key agreement decides the way, and the shared secrets of
// the KEMs that are left are those of software.
func TestAgreements(t *testing.T) {
	for _, c := range []struct {
		mask  string   // a profile, or "" for rules
		rules []string // of the shim
		kems  string
		way   string
	}{
		{"luna", nil, "[suite 1 suite 2]", "CKD_NULL, a secret that is read, for suite 1 and suite 2"},
		{"luna-fips", nil, "[suite 2]", "CKD_SHA256_KDF, a secret that stays inside the token, for suite 2"},
		{"ep11", nil, "[suite 1 suite 2]", "CKD_NULL, a secret that C_DigestKey hashes inside the token, for suite 1 and suite 2"},
		{"ep11", []string{"C_DigestKey rv CKR_FUNCTION_NOT_SUPPORTED"}, "[suite 2]", "CKD_SHA256_KDF, a secret that stays inside the token, for suite 2"},
	} {
		t.Run(strings.Join(append([]string{c.mask}, c.rules...), ", "), func(t *testing.T) {
			b := newBed(t)
			profile, err := profiles.Named(c.mask)
			if err != nil {
				t.Fatal(err)
			}
			env, err := profile.Write(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			name, value, _ := strings.Cut(env, "=")
			t.Setenv(name, value)
			p, log, err := b.opened([]hsm.Usage{hsm.SignP256, hsm.DeriveP256}, c.rules...)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(p.KEMs()); got != c.kems {
				t.Errorf("offers %s, want %s", got, c.kems)
			}
			if way := "key agreement: " + c.way; !slices.Contains(p.Ways(), way) || !strings.Contains(log.String(), way) {
				t.Errorf("%q is not in %q, or not in the log", way, p.Ways())
			}
			b.agrees(p)
		})
	}
}

// agrees compares shared secrets of a new key with software.
func (b *bed) agrees(p hsm.Token) {
	b.Helper()
	k, err := p.Generate(b.Context(), hsm.KeySpec{Label: "kem@1", Usage: hsm.DeriveP256})
	if err != nil {
		b.Fatal(err)
	}
	public, err := k.ECDH()
	if err != nil {
		b.Fatal(err)
	}
	for _, kem := range p.KEMs() {
		peer, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		z, err := peer.ECDH(public)
		if err != nil {
			b.Fatal(err)
		}
		enc := peer.PublicKey()
		got, err := p.Decap(b.Context(), k.ID, kem, enc)
		if want := kem.Secret(z, slices.Concat(enc.Bytes(), public.Bytes())); err != nil || !bytes.Equal(got, want) {
			b.Errorf("%s: %x, %v; want %x", kem, got, err, want)
		}
	}
}

// TestAgreementCalls: where Z can be read, a shared secret takes three calls for either suite: the module
// derives, the worker reads, and the module destroys.
func TestAgreementCalls(t *testing.T) {
	b := newBed(t)
	p, _, err := b.opened(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Generate(t.Context(), hsm.KeySpec{Label: "without canaries", Usage: hsm.DeriveP256})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const times = 10
	for _, kem := range []hsm.KEM{hsm.DHKEM, hsm.KEM2} {
		if _, err := p.Decap(t.Context(), k.ID, kem, peer.PublicKey()); err != nil { // the key is found, a session open
			t.Fatal(err)
		}
		counts := b.counted(func() {
			for range times {
				if _, err := p.Decap(t.Context(), k.ID, kem, peer.PublicKey()); err != nil {
					t.Error(err)
				}
			}
		})
		delete(counts, "C_GetSessionInfo") // keeps the login busy, at intervals
		for function, c := range counts {
			if c.Calls != 0 && (c.Calls != times || !slices.Contains([]string{"C_DeriveKey", "C_GetAttributeValue", "C_DestroyObject"}, function)) {
				t.Errorf("%s: %d calls of %s for %d shared secrets", kem, c.Calls, function, times)
			}
		}
		if counts["C_DeriveKey"].Calls != times || counts["C_GetAttributeValue"].Calls != times || counts["C_DestroyObject"].Calls != times {
			t.Errorf("%s: %v", kem, counts)
		}
	}
}
