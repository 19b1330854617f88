package attack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
)

// Mint makes certificates and decisions with any key.
type Mint struct{ Ctx context.Context }

// KeyCert by some root. Dates that are zero are of a good certificate.
func (m *Mint) KeyCert(root Key, k trust.KeyCert) []byte {
	if k.NotBefore == 0 {
		k.NotBefore = Now() - 3600
	}
	if k.NotAfter == 0 {
		k.NotAfter = Now() + 3600
	}
	return harness.Must(trust.SignKeyCert(m.Ctx, root, k))
}

// RootCert number n, by its own key, that commits to the next.
func (m *Mint) RootCert(n uint64, key, next Key) []byte {
	return harness.Must(trust.SignRootCert(m.Ctx, key, trust.RootCert{Number: n, Key: key.Point(), NextHash: HashOf(next)}))
}

// HashOf is the next_root_hash that pins a key.
func HashOf(key Key) [32]byte {
	point := key.Point()
	return sha256.Sum256(point[:])
}

// Decision by a key of an epoch.
func (m *Mint) Decision(key Key, epoch uint64, d receipt.Decision) []byte {
	return harness.Must(receipt.Sign(m.Ctx, key, epoch, d))
}

// Batch of decisions by a key of epoch 1.
func (m *Mint) Batch(key Key, decisions ...receipt.Decision) [][]byte {
	return harness.Must(receipt.SignAll(m.Ctx, key, 1, decisions))
}

// ClientCert of a phone, by a client-ca of epoch 1.
func (m *Mint) ClientCert(ca Key, p *Phone) []byte {
	c := trust.ClientCert{Client: p.ID, SigningKey: p.Key.Point(), NotBefore: Now() - 60, NotAfter: Now() + 3600}
	if p.UV != nil {
		point := p.UV.Point()
		c.UVKey = &point
	}
	return harness.Must(trust.SignClientCert(m.Ctx, ca, 1, c))
}

// Evidence of a phone that approves a statement with its ordinary key.
func (m *Mint) Evidence(p *Phone, s message.Statement, cert []byte) receipt.Evidence {
	a := message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning}
	sig := harness.Must(message.Countersign(m.Ctx, p.Key, s, a))
	return receipt.Evidence{Statement: s, ClientCert: cert, Approval: a, Signature: sig}
}

// Splice puts element i of one CBOR array into another: the payload of one decision
// (2) under the signature of another, the leaf of one receipt (1) beside another.
func (m *Mint) Splice(into, from []byte, i int) []byte {
	var a, b []cbor.RawMessage
	harness.Do(cbor.Unmarshal(into, &a))
	harness.Do(cbor.Unmarshal(from, &b))
	a[i] = b[i]
	return harness.Must(cbor.Marshal(a))
}

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
