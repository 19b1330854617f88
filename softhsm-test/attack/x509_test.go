package attack

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"time"

	"countersign/softhsm-test/harness"
)

// Request is a PKCS#10 request of a new key, PEM.
func Request() string {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, NewKey().PrivateKey)
	harness.Do(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// Certificate has a SPIFFE ID and is by a CA of its own.
func Certificate(spiffe string) tls.Certificate {
	name := harness.Must(url.Parse(spiffe))
	ca, key := NewKey(), NewKey()
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, &key.PublicKey, ca.PrivateKey)
	harness.Do(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.PrivateKey}
}
