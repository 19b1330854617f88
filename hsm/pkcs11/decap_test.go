package pkcs11

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"countersign/hsm"
)

// agreeing makes the shared token agree in a way until the end of the test.
func agreeing(t *testing.T, way agreeWay) {
	t.Helper()
	before := shared.ways
	shared.ways.agreement = way
	t.Cleanup(func() { shared.ways = before })
}

// TestDecapByDigest: Z is hashed inside the token, and the shared secrets are those of software.
func TestDecapByDigest(t *testing.T) {
	k := generate(t, "digests", hsm.DeriveP256)
	public := mustECDH(t, k)
	agreeing(t, agreeDigest)
	for range 20 {
		peer, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		z, err := peer.ECDH(public)
		if err != nil {
			t.Fatal(err)
		}
		enc := peer.PublicKey()
		for _, kem := range []hsm.KEM{hsm.DHKEM, hsm.KEM2} {
			got, err := shared.Decap(t.Context(), k.ID, kem, enc)
			if want := kem.Secret(z, slices.Concat(enc.Bytes(), public.Bytes())); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %x, %v; want %x", kem, got, err, want)
			}
		}
	}
	noSessionObjects(t)
}

// TestDecapOffered: a KEM that the way cannot do is refused before the module is asked.
func TestDecapOffered(t *testing.T) {
	k := generate(t, "offered", hsm.DeriveP256)
	agreeing(t, agreeKDF)
	if _, err := shared.Decap(t.Context(), k.ID, hsm.DHKEM, mustECDH(t, k)); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("suite 1 where the token offers suite 2 only: %v, want ErrUnsupported", err)
	}
	agreeing(t, agreeNone)
	if _, err := shared.Decap(t.Context(), k.ID, hsm.KEM2, mustECDH(t, k)); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("suite 2 where the token offers none: %v, want ErrUnsupported", err)
	}
}
