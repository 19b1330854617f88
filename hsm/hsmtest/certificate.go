package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// certificate is one of the public key, by an issuer of the moment.
func certificate(t *testing.T, public crypto.PublicKey, serial int64) []byte {
	t.Helper()
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "subject"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "issuer"}}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (s *suite) testCertificate(t *testing.T) {
	var k hsm.Key
	for _, k = range s.several(t) {
		if k.Usage.Pair() {
			break
		}
	}
	if !k.Usage.Pair() {
		t.Skip("module lacks key pairs")
	}
	public, _, err := check.ParsePublic(k.Public)
	if err != nil {
		t.Fatal(err)
	}
	first := hsm.Certificate{Key: k.ID, Label: k.Label, DER: certificate(t, public, 200)}
	second := hsm.Certificate{Key: k.ID, Label: k.Label, DER: certificate(t, public, 300)}
	for _, c := range []hsm.Certificate{first, second, first} {
		must(t, s.token.StoreCertificate(t.Context(), c))
	}
	if n := s.certificates(t, k.ID, first, second); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}
	s.refusesCertificates(t, first)
	s.drop(t, k.ID)
	delete(s.made, k.Usage)
	if n := s.certificates(t, k.ID); n != 0 {
		t.Errorf("%d certificates outlive their key", n)
	}
}

// certificates counts those of a key and looks for some.
func (s *suite) certificates(t *testing.T, id hsm.KeyID, want ...hsm.Certificate) (n int) {
	t.Helper()
	all, err := s.token.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Key == id {
			n++
		}
		for i, w := range want {
			if c.Key == w.Key && c.Label == w.Label && bytes.Equal(c.DER, w.DER) {
				want = append(want[:i:i], want[i+1:]...)
				break
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("%d certificates are not listed", len(want))
	}
	return n
}

func (s *suite) refusesCertificates(t *testing.T, good hsm.Certificate) {
	t.Helper()
	for name, change := range map[string]func(*hsm.Certificate){
		"key":     func(c *hsm.Certificate) { c.Key[0] ^= 1 },
		"label":   func(c *hsm.Certificate) { c.Label = strings.Repeat("x", 65) },
		"nothing": func(c *hsm.Certificate) { c.DER = nil },
		"more":    func(c *hsm.Certificate) { c.DER = append(bytes.Clone(c.DER), 0) },
	} {
		c := good
		change(&c)
		if err := s.token.StoreCertificate(t.Context(), c); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", name, err)
		}
	}
}
