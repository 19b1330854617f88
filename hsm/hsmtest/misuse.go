package hsmtest

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"

	"countersign/hsm"
)

// ids are the keys of one round of calls.
type ids struct{ sign, derive, mac, wrap hsm.KeyID }

// calls does one of each with good arguments and returns the errors by name.
func (s *suite) calls(ctx context.Context, t *testing.T, k ids) map[string]error {
	digest := sha256.Sum256(nil)
	_, sign := s.token.Sign(ctx, k.sign, digest[:])
	_, derive := s.token.Derive(ctx, k.derive, newPeer(t).PublicKey())
	_, mac := s.token.MAC(ctx, k.mac, nil)
	_, macWrapped := s.token.MACWrapped(ctx, k.wrap, s.kept, nil)
	i := s.wrapped(t, newSecret())
	i.Enrol, i.Wrap = k.derive, s.wrap.ID
	_, importTo := s.token.Import(ctx, i)
	i.Enrol, i.Wrap = s.derive.ID, k.wrap
	_, importFor := s.token.Import(ctx, i)
	return map[string]error{
		"Sign": sign, "Derive": derive, "MAC": mac, "MACWrapped": macWrapped,
		"Import by enrol": importTo, "Import by wrap": importFor,
	}
}

func (s *suite) testWrongKey(t *testing.T) {
	unknown := hsm.KeyID{1, 2, 3}
	for _, k := range []ids{
		{unknown, unknown, unknown, unknown},
		{s.derive.ID, s.mac.ID, s.sign.ID, s.sign.ID},
		{s.mac.ID, s.sign.ID, s.derive.ID, s.mac.ID},
		{s.wrap.ID, s.wrap.ID, s.wrap.ID, s.derive.ID},
	} {
		for name, err := range s.calls(t.Context(), t, k) {
			if !errors.Is(err, hsm.ErrKey) {
				t.Errorf("%s with %v: %v, want ErrKey", name, k, err)
			}
		}
	}
}

func (s *suite) testBadInput(t *testing.T) {
	for _, n := range []int{0, 20, 31, 33, 64} {
		if _, err := s.token.Sign(t.Context(), s.sign.ID, make([]byte, n)); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("Sign of %d bytes: %v, want ErrInput", n, err)
		}
	}
	foreign, err := ecdh.P384().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, peer := range map[string]*ecdh.PublicKey{"nil": nil, "P-384": foreign.PublicKey()} {
		if _, err := s.token.Derive(t.Context(), s.derive.ID, peer); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("Derive with peer %s: %v, want ErrInput", name, err)
		}
	}
	if _, err := s.token.MAC(t.Context(), s.mac.ID, make([]byte, 64<<10+1)); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("MAC of 64 KiB + 1: %v, want ErrInput", err)
	}
}

func (s *suite) testConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 20 {
				digest := sha256.Sum256(fmt.Append(nil, g, i))
				sig, err := s.token.Sign(t.Context(), s.sign.ID, digest[:])
				if err != nil || !verifies(s.sign, digest[:], sig) {
					t.Errorf("Sign in goroutine %d: %x, %v", g, sig, err)
				}
				for name, err := range s.calls(t.Context(), t, ids{s.sign.ID, s.derive.ID, s.mac.ID, s.wrap.ID}) {
					if err != nil {
						t.Errorf("%s in goroutine %d: %v", name, g, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// exchanger lets crypto/hpke open with a key whose ECDH is done by the token.
type exchanger struct {
	suite  *suite
	public *ecdh.PublicKey
}

var _ ecdh.KeyExchanger = exchanger{}

func (e exchanger) PublicKey() *ecdh.PublicKey { return e.public }
func (e exchanger) Curve() ecdh.Curve          { return e.public.Curve() }

func (e exchanger) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return e.suite.token.Derive(context.Background(), e.suite.derive.ID, peer)
}

func (s *suite) testHPKE(t *testing.T) {
	public, err := ecdh.P256().NewPublicKey(s.derive.Public)
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := hpke.NewDHKEMPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	info, secret := []byte("info"), "the request"
	sealed, err := hpke.Seal(recipient, hpke.HKDFSHA256(), hpke.AES128GCM(), info, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	private, err := hpke.NewDHKEMPrivateKey(exchanger{s, public})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES128GCM(), info, sealed)
	if err != nil || string(opened) != secret {
		t.Errorf("opened %q, %v; want %q", opened, err, secret)
	}
}
