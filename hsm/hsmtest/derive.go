package hsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"testing"

	"countersign/hsm"
)

func newPeer(tb testing.TB) *ecdh.PrivateKey {
	tb.Helper()
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return peer
}

// More than 256 peers, so that a secret with a leading zero byte is among them
// more often than not: that is where its length goes wrong.
func (s *suite) testDerive(t *testing.T) {
	k := s.key(t, hsm.DeriveP256)
	for range 300 {
		s.derives(t, k, newPeer(t))
	}
}

// derives compares an ECDH of the token with the same from the other side.
func (s *suite) derives(t *testing.T, k hsm.Key, peer *ecdh.PrivateKey) {
	t.Helper()
	public, err := k.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	want, err := peer.ECDH(public)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.token.Derive(t.Context(), k.ID, peer.PublicKey())
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Fatalf("Z = %x, want %x", got, want)
	}
}

// exchanger lets crypto/hpke open with a key whose ECDH is done by the token.
type exchanger struct {
	token  hsm.Token
	id     hsm.KeyID
	public *ecdh.PublicKey
}

var _ ecdh.KeyExchanger = exchanger{}

func (e exchanger) PublicKey() *ecdh.PublicKey { return e.public }
func (e exchanger) Curve() ecdh.Curve          { return e.public.Curve() }

func (e exchanger) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return e.token.Derive(context.Background(), e.id, peer)
}

func (s *suite) testHPKE(t *testing.T) {
	k := s.key(t, hsm.DeriveP256)
	public, err := k.ECDH()
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
	private, err := hpke.NewDHKEMPrivateKey(exchanger{s.token, k.ID, public})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES128GCM(), info, sealed)
	if err != nil || string(opened) != secret {
		t.Errorf("opened %q, %v; want %q", opened, err, secret)
	}
}
