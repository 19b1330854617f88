package hsmtest

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"countersign/hsm"
)

// There are more than 256 peers, so that a secret with a leading zero byte is probably
// among them: its length is where implementations err.
func (s *suite) testDecap(t *testing.T) {
	k := s.key(t, hsm.DeriveP256)
	for _, kem := range s.kems(t) {
		for range 300 {
			s.decapsulates(t, k, kem)
		}
	}
}

// kems returns the KEMs that the token offers.
func (s *suite) kems(t *testing.T) []hsm.KEM {
	t.Helper()
	kems := s.token.KEMs()
	if len(kems) == 0 || !slices.IsSorted(kems) {
		t.Fatalf("the token has keys for ECDH, and offers %v", kems)
	}
	return kems
}

// decapsulates compares a shared secret of the token with that of a new sender.
func (s *suite) decapsulates(t *testing.T, k hsm.Key, kem hsm.KEM) {
	t.Helper()
	public, err := k.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	peer := newPeer(t)
	z, err := peer.ECDH(public)
	if err != nil {
		t.Fatal(err)
	}
	enc := peer.PublicKey()
	want := kem.Secret(z, slices.Concat(enc.Bytes(), public.Bytes()))
	got, err := s.token.Decap(t.Context(), k.ID, kem, enc)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %x, want %x", kem, got, want)
	}
}

// kemVectors are RFC 9180 appendix A.3.1, and the first vector of suite2.json.
var kemVectors = []struct {
	kem                  hsm.KEM
	private, enc, shared string
}{
	{
		hsm.DHKEM, "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2",
		"04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac9" +
			"8536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4",
		"c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8",
	},
	{
		hsm.KEM2, "7adda12ea0cacac0a1a50d354ff6de762a58faf7aef28d5eea307b386812bf01",
		"04639dd098a7e26a656e408c42e7906d4f147d6b1f2ba43eff507a69b06fc74805" +
			"50b141583250de335b04c69f5f51e9421e3aea11095cd0de1a9c94de3a163a7f",
		"73a44c79fd3339f869930bbfb83178fec75d2f12f7b236fa5717c1525189f679",
	},
}

func decoded(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testDecapVectors adopts the keys of the vectors.
func (s *suite) testDecapVectors(t *testing.T) {
	s.key(t, hsm.DeriveP256) // or the module has none
	for _, v := range kemVectors {
		t.Run(v.kem.String(), func(t *testing.T) {
			if !slices.Contains(s.kems(t), v.kem) {
				t.Skipf("module offers %v", s.kems(t))
			}
			private, err := ecdh.P256().NewPrivateKey(decoded(t, v.private))
			if err != nil {
				t.Fatal(err)
			}
			enc, err := ecdh.P256().NewPublicKey(decoded(t, v.enc))
			if err != nil {
				t.Fatal(err)
			}
			k, err := s.token.Adopt(t.Context(), hsm.KeySpec{Label: s.prefix + "vector@1", Usage: hsm.DeriveP256}, private)
			must(t, err)
			got, err := s.token.Decap(t.Context(), k.ID, v.kem, enc)
			if err != nil || !bytes.Equal(got, decoded(t, v.shared)) {
				t.Errorf("%x, %v; want %s", got, err, v.shared)
			}
			s.drop(t, k.ID)
		})
	}
}

// testDecapRefused tries a KEM that the token does not offer, and unknown ones.
func (s *suite) testDecapRefused(t *testing.T) {
	k, enc := s.key(t, hsm.DeriveP256), newPeer(t).PublicKey()
	for _, kem := range []hsm.KEM{0, hsm.KEM2 + 1, 255} {
		if _, err := s.token.Decap(t.Context(), k.ID, kem, enc); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", kem, err)
		}
	}
	for _, kem := range []hsm.KEM{hsm.DHKEM, hsm.KEM2} {
		_, err := s.token.Decap(t.Context(), k.ID, kem, enc)
		if offered := slices.Contains(s.kems(t), kem); offered != (err == nil) || !offered && !errors.Is(err, hsm.ErrUnsupported) {
			t.Errorf("%s, offered %v: %v", kem, offered, err)
		}
	}
}
