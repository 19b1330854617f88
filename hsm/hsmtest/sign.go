package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// signs tests one algorithm with keys of one usage.
func (s *suite) signs(usage hsm.Usage, alg hsm.Algorithm) func(*testing.T) {
	return func(t *testing.T) {
		k := s.key(t, usage)
		public, _, err := check.ParsePublic(k.Public)
		if err != nil {
			t.Fatal(err)
		}
		inputs := [][]byte{digest(alg, "a decision"), digest(alg, "another")}
		if alg == hsm.EdDSA {
			inputs = [][]byte{{}, []byte("a decision"), make([]byte, 64<<10)}
		}
		for _, input := range inputs {
			sig, err := s.token.Sign(t.Context(), k.ID, alg, input)
			must(t, err)
			if err := check.Verify(public, alg, input, sig); err != nil {
				t.Errorf("%s: signature %x: %v", alg, sig, err)
			}
			for _, flipped := range flips(sig) {
				if check.Verify(public, alg, input, flipped) == nil {
					t.Errorf("%s: signature %x verifies too", alg, flipped)
				}
			}
		}
		s.refusesToSign(t, k, alg)
	}
}

func (s *suite) rsa(algs ...hsm.Algorithm) func(*testing.T) {
	return func(t *testing.T) {
		for _, usage := range []hsm.Usage{hsm.SignRSA2048, hsm.SignRSA3072, hsm.SignRSA4096} {
			for _, alg := range algs {
				t.Run(usage.String()+"/"+alg.String(), s.signs(usage, alg))
			}
		}
	}
}

// digest returns a digest of text by the hash of alg, or for EdDSA the text.
func digest(alg hsm.Algorithm, text string) []byte {
	if alg.Hash() == 0 {
		return []byte(text)
	}
	h := alg.Hash().New()
	h.Write([]byte(text))
	return h.Sum(nil)
}

// refusesToSign tries every other algorithm, and inputs of other lengths.
func (s *suite) refusesToSign(t *testing.T, k hsm.Key, good hsm.Algorithm) {
	for alg := hsm.ES256; alg <= hsm.PS512; alg++ {
		_, err := s.token.Sign(t.Context(), k.ID, alg, digest(alg, "x"))
		if !alg.For(k.Usage) && !errors.Is(err, hsm.ErrKey) && !errors.Is(err, hsm.ErrUnsupported) {
			t.Errorf("%s with a key for %s: %v, want ErrKey", alg, k.Usage, err)
		}
	}
	lengths := []int{0, 20, 31, 33, 47, 49, 63, 65}
	if good == hsm.EdDSA {
		lengths = []int{64<<10 + 1}
	}
	for _, n := range lengths {
		if _, err := s.token.Sign(t.Context(), k.ID, good, make([]byte, n)); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s of %d bytes: %v, want ErrInput", good, n, err)
		}
	}
	for _, alg := range []hsm.Algorithm{0, hsm.PS512 + 1} {
		if _, err := s.token.Sign(t.Context(), k.ID, alg, make([]byte, crypto.SHA256.Size())); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", alg, err)
		}
	}
}

// flips returns copies of b with one bit flipped, in several places.
func flips(b []byte) (all [][]byte) {
	for i := 0; i < len(b); i += 7 {
		flipped := slices.Clone(b)
		flipped[i] ^= 1 << (i % 8)
		all = append(all, flipped)
	}
	return all
}

func (s *suite) testMAC(t *testing.T) {
	k, other := s.key(t, hsm.MACKey), s.generate(t, "mac@2", hsm.MACKey)
	macs := map[string]string{}
	for _, data := range []string{"", "a record", "another record", strings.Repeat("x", 64<<10)} {
		for _, k := range []hsm.Key{k, other} {
			first, err := s.token.MAC(t.Context(), k.ID, []byte(data))
			if err != nil {
				t.Fatalf("MAC of %d bytes: %v", len(data), err)
			}
			second, err := s.token.MAC(t.Context(), k.ID, []byte(data))
			if err != nil || !bytes.Equal(first, second) || len(first) != 32 {
				t.Fatalf("MAC of %d bytes = %x, then %x, %v", len(data), first, second, err)
			}
			macs[string(first)] = data
		}
	}
	if len(macs) != 8 {
		t.Errorf("%d different MACs of 4 messages under 2 keys, want 8", len(macs))
	}
	if _, err := s.token.MAC(t.Context(), k.ID, make([]byte, 64<<10+1)); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("MAC of 64 KiB + 1: %v, want ErrInput", err)
	}
}

func newPeer(tb testing.TB) *ecdh.PrivateKey {
	tb.Helper()
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return peer
}
