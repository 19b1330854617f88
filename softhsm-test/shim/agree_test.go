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
