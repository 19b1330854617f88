// Package hsmtest is the contract of package hsm as one test suite, and what
// tests need to have a real token: a SoftHSM of their own, and the worker
// binary.
package hsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
)

// Run holds a token to the contract. open is called once; the token it returns
// may hold keys already and keeps those the suite makes.
func Run(t *testing.T, open func(t *testing.T) hsm.Token) {
	s := &suite{token: open(t), prefix: rand.Text()[:8] + "-"}
	s.sign = s.generate(t, "sign@1", hsm.SignP256)
	s.derive = s.generate(t, "derive@1", hsm.DeriveP256)
	s.mac = s.generate(t, "mac@1", hsm.MACKey)
	s.wrap = s.generate(t, "wrap@1", hsm.WrapKey)
	s.kept = s.importSecret(t, s.wrap.ID, newSecret())
	t.Run("Generate", s.testGenerate)
	t.Run("Exists", s.testExists)
	t.Run("BadSpec", s.testBadSpec)
	t.Run("Keys", s.testKeys)
	t.Run("Sign", s.testSign)
	t.Run("Derive", s.testDerive)
	t.Run("MAC", s.testMAC)
	t.Run("Import", s.testImport)
	t.Run("ImportRefused", s.testImportRefused)
	t.Run("MACWrappedRefused", s.testMACWrappedRefused)
	t.Run("HPKE", s.testHPKE)
	t.Run("BadInput", s.testBadInput)
	t.Run("WrongKey", s.testWrongKey)
	t.Run("Cancelled", s.testCancelled)
	t.Run("Concurrent", s.testConcurrent)
}

type suite struct {
	token                   hsm.Token
	prefix                  string // of this run's labels
	sign, derive, mac, wrap hsm.Key
	kept                    []byte // a secret that wrap keeps
}

func (s *suite) generate(t *testing.T, label string, usage hsm.Usage) hsm.Key {
	t.Helper()
	spec := hsm.KeySpec{Label: s.prefix + label, Usage: usage}
	k, err := s.token.Generate(t.Context(), spec)
	if err != nil {
		t.Fatalf("Generate(%v): %v", spec, err)
	}
	if k.Label != spec.Label || k.Usage != usage {
		t.Fatalf("Generate(%v) = %v", spec, k)
	}
	return k
}

func (s *suite) testGenerate(t *testing.T) {
	for _, k := range []hsm.Key{s.sign, s.derive} {
		public, err := ecdh.P256().NewPublicKey(k.Public)
		if err != nil || len(k.Public) != 65 {
			t.Fatalf("%s: public key of %d bytes: %v", k.Label, len(k.Public), err)
		}
		spki, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(spki); !bytes.Equal(k.ID[:], sum[:20]) {
			t.Errorf("%s: id %s, want %x", k.Label, k.ID, sum[:20])
		}
	}
	for _, k := range []hsm.Key{s.mac, s.wrap} {
		if k.Public != nil || k.ID == (hsm.KeyID{}) {
			t.Errorf("%s: id %s, public %x", k.Label, k.ID, k.Public)
		}
	}
}

func (s *suite) testExists(t *testing.T) {
	before := s.keys(t)
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.MACKey} {
		_, err := s.token.Generate(t.Context(), hsm.KeySpec{Label: s.sign.Label, Usage: usage})
		if !errors.Is(err, hsm.ErrExists) {
			t.Errorf("second %s with the label: %v, want ErrExists", usage, err)
		}
	}
	if after := s.keys(t); len(after) != len(before) {
		t.Errorf("%d keys before, %d after", len(before), len(after))
	}
}

func (s *suite) testBadSpec(t *testing.T) {
	for _, spec := range []hsm.KeySpec{
		{Label: "", Usage: hsm.SignP256},
		{Label: strings.Repeat("x", 65), Usage: hsm.SignP256},
		{Label: "\xff", Usage: hsm.SignP256},
		{Label: "unknown", Usage: 0},
		{Label: "unknown", Usage: hsm.WrapKey + 1},
	} {
		if _, err := s.token.Generate(t.Context(), spec); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("Generate(%v): %v, want ErrInput", spec, err)
		}
	}
}

func (s *suite) keys(t *testing.T) []hsm.Key {
	t.Helper()
	keys, err := s.token.Keys(t.Context())
	if err != nil {
		t.Fatalf("Keys: %v", err)
	}
	return keys
}

func (s *suite) testKeys(t *testing.T) {
	keys := s.keys(t)
	for _, want := range []hsm.Key{s.sign, s.derive, s.mac, s.wrap} {
		same := func(k hsm.Key) bool {
			return k.ID == want.ID && k.Label == want.Label && k.Usage == want.Usage && bytes.Equal(k.Public, want.Public)
		}
		if !slices.ContainsFunc(keys, same) {
			t.Errorf("%v not among %v", want, keys)
		}
	}
}

func (s *suite) testSign(t *testing.T) {
	digest := sha256.Sum256([]byte("a decision"))
	sig, err := s.token.Sign(t.Context(), s.sign.ID, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(s.sign, digest[:], sig) {
		t.Errorf("signature %x does not verify", sig)
	}
	digest[0] ^= 1
	if verifies(s.sign, digest[:], sig) {
		t.Error("signature verifies over another digest")
	}
}

func verifies(k hsm.Key, digest, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), k.Public)
	if err != nil {
		return false
	}
	return ecdsa.Verify(public, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

func (s *suite) testDerive(t *testing.T) {
	public, err := ecdh.P256().NewPublicKey(s.derive.Public)
	if err != nil {
		t.Fatal(err)
	}
	// More than 256 peers, so that a secret with a leading zero byte is among
	// them more often than not: that is where its length goes wrong.
	for range 300 {
		peer := newPeer(t)
		want, err := peer.ECDH(public)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.token.Derive(t.Context(), s.derive.ID, peer.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("Z = %x, want %x", got, want)
		}
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

func (s *suite) testMAC(t *testing.T) {
	other := s.generate(t, "mac@2", hsm.MACKey)
	macs := map[string]string{}
	for _, data := range []string{"", "a record", "another record", strings.Repeat("x", 64<<10)} {
		for _, k := range []hsm.Key{s.mac, other} {
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
}

func (s *suite) testCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range s.calls(ctx, t, ids{s.sign.ID, s.derive.ID, s.mac.ID, s.wrap.ID}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	if _, err := s.token.Keys(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Keys: %v, want context.Canceled", err)
	}
	spec := hsm.KeySpec{Label: s.prefix + "cancelled", Usage: hsm.MACKey}
	if _, err := s.token.Generate(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("Generate: %v, want context.Canceled", err)
	}
}
