package keyuse

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"countersign/appliance/keyring"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Lifetimes of certificates.
const (
	// ServerCertLife is for the API's TLS certificate, renewed at half-life.
	ServerCertLife = 24 * time.Hour
	// DeviceCertLife is for a device's certificate. The device renews it at half-life
	// (POST /v1/renew).
	DeviceCertLife = 30 * 24 * time.Hour
)

// How long before its issue a certificate begins, for peers whose clocks are slow.
const (
	clientCertEarly = 24 * time.Hour
	leafEarly       = time.Hour // X.509
)

// TrustDocument returns the answer of GET /v1/trust. It has the KeyCerts by the current
// root that have not ended at now and were not withdrawn, including future epochs.
func (k *Keys) TrustDocument(now time.Time) trust.Document {
	ring := k.Ring()
	d := trust.Document{
		RootKey: ring.Root().Point, NextRootHash: ring.Settings.NextRootHash, RootCerts: ring.Settings.RootCerts,
	}
	for _, key := range ring.Keys() {
		if published(ring, key, now) && !now.After(key.NotAfter) {
			d.KeyCerts = append(d.KeyCerts, key.Cert)
		}
	}
	return d
}

// published reports whether phones and devices get the key's KeyCert. One that rules out
// the epoch in use is not published before it is in use itself.
func published(ring *keyring.Ring, k keyring.Key, now time.Time) bool {
	return k.Name != keyring.Root && k.Cert != nil && k.Root == ring.RootNumber() && k.Held() && (!k.RulesOut || k.Begun(now))
}

// ClientCert issues a client certificate, PROTOCOL.md §5.
func (k *Keys) ClientCert(ctx context.Context, cert trust.ClientCert, now time.Time) ([]byte, error) {
	key, err := k.Current(keyring.ClientCA, now)
	if err != nil {
		return nil, err
	}
	cert.NotBefore = uint64(now.Add(-clientCertEarly).Unix())
	cert.NotAfter = uint64(now.Add(keyring.ClientCertLife).Unix())
	return trust.SignClientCert(ctx, k.Signer(key), key.Version, cert)
}

// Issued is a client certificate that an epoch of client-ca has signed.
type Issued struct {
	trust.ClientCert
	// Held means that a strict device can verify it: it is within its dates, and its epoch
	// is published to devices.
	Held bool
	// Doubtful means that its epoch was compromised, or ruled out by a later one, so that
	// anyone may have signed it.
	Doubtful bool
}

// ReadClientCert reads a client certificate of any epoch of client-ca, including epochs
// that are over, retired or of an earlier root. Its kid is the epoch modulo 256. An error
// wraps [protocol.CodeFormat] or [protocol.CodeCertificate].
func (k *Keys) ReadClientCert(cert []byte, now time.Time) (Issued, error) {
	ring := k.Ring()
	err := fmt.Errorf("key %q: %w", keyring.ClientCA, protocol.CodeCertificate)
	for _, ca := range slices.Backward(ring.Versions(keyring.ClientCA)) {
		var i Issued
		if i.ClientCert, err = (trust.KeyCert{Epoch: ca.Version, Key: ca.Point}).ReadClient(cert); err == nil {
			i.Held = published(ring, ca, now) && ca.Dated(now) && i.ValidAt(uint64(now.Unix())) == nil
			ruledOut := slices.ContainsFunc(ring.Versions(ca.Name), func(later keyring.Key) bool {
				return later.Version > ca.Version && later.RulesOut && later.Begun(now)
			})
			i.Doubtful = !ca.CompromisedAt.IsZero() || ruledOut
			return i, nil
		}
	}
	return Issued{}, err
}

// Issuer returns the certificate of the ca epoch that issues at now.
func (k *Keys) Issuer(ctx context.Context, now time.Time) (*x509.Certificate, error) {
	key, err := k.Current(keyring.CA, now)
	if err != nil {
		return nil, err
	}
	return k.Authority(ctx, key)
}

// Authorities returns the X.509 certificates of every ca epoch that is not over at now,
// to verify callers: a later epoch may begin while they are in use.
func (k *Keys) Authorities(ctx context.Context, now time.Time) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, key := range k.Ring().Accepted(keyring.CA, now) {
		cert, err := k.Authority(ctx, key)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("key %q: %w", keyring.CA, keyring.ErrNoKey)
	}
	return out, nil
}

// InForce returns the time until which one of the chains is in force. TLS has verified them before. A chain is in force
// while its authority is an accepted version of ca in the ring and none of its certificates has expired.
func InForce(ring *keyring.Ring, chains [][]*x509.Certificate, now time.Time) (until time.Time, err error) {
	err = errors.New("no verified certificate")
	for _, chain := range chains {
		if until, err = inForce(ring, chain, now); err == nil {
			return until, nil
		}
	}
	return time.Time{}, err
}

func inForce(ring *keyring.Ring, chain []*x509.Certificate, now time.Time) (until time.Time, err error) {
	for i, cert := range chain {
		if i == 0 || cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	if now.After(until) {
		return until, fmt.Errorf("certificate of %s: its chain expired at %s", chain[0].Subject, until.UTC().Format(time.RFC3339))
	}
	authority := chain[len(chain)-1]
	for _, ca := range ring.Accepted(keyring.CA, now) {
		key, err := ca.Point.ECDSA()
		if err != nil {
			return until, err
		}
		if key.Equal(authority.PublicKey) {
			return until, nil
		}
	}
	return until, fmt.Errorf("certificate of %s: its authority %s is not in force", chain[0].Subject, authority.Subject)
}

// Authority issues the self-signed X.509 certificate of a ca epoch. It may be issued again
// at any time: only the key counts, which a KeyCert certifies.
func (k *Keys) Authority(ctx context.Context, key keyring.Key) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(key.Version)),
		Subject:      k.caName(key),
		NotBefore:    key.NotBefore, NotAfter: key.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:     x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		SubjectKeyId: key.ID[:],
	}
	return k.issue(ctx, key, template, template, nil)
}

func (k *Keys) caName(key keyring.Key) pkix.Name {
	return pkix.Name{CommonName: fmt.Sprintf("%s ca %d", k.Domain(), key.Version)}
}

// issue signs template with the ca key. A nil public key means the ca's own.
func (k *Keys) issue(
	ctx context.Context, key keyring.Key, template, parent *x509.Certificate, public crypto.PublicKey,
) (*x509.Certificate, error) {
	own, err := key.Point.ECDSA()
	if err != nil {
		return nil, err
	}
	if public == nil {
		public = own
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, certSigner{k.Signer(key), ctx, own})
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// certSigner is a Signer with the interface that crypto/x509 requires, within one
// context.
type certSigner struct {
	Signer
	ctx    context.Context
	public *ecdsa.PublicKey
}

func (c certSigner) Public() crypto.PublicKey { return c.public }

func (c certSigner) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	sig, err := c.SignDigest(c.ctx, digest)
	if err != nil {
		return nil, err
	}
	return derSignature(sig)
}

// derSignature encodes r‖s as the Ecdsa-Sig-Value of RFC 3279 §2.2.3.
func derSignature(sig []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(sig[:protocol.SignatureSize/2]))
		b.AddASN1BigInt(new(big.Int).SetBytes(sig[protocol.SignatureSize/2:]))
	})
	return b.Bytes()
}

// ServerCert issues a TLS server certificate for these DNS names and addresses.
// No other certificate has the extended key usage serverAuth.
func (k *Keys) ServerCert(
	ctx context.Context, public crypto.PublicKey, names []string, now time.Time,
) (*x509.Certificate, error) {
	template := leaf("appliance", now, ServerCertLife, x509.ExtKeyUsageServerAuth)
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return k.issueLeaf(ctx, template, public, now)
}

// DeviceCert issues a TLS client certificate for the party with this SPIFFE ID.
func (k *Keys) DeviceCert(
	ctx context.Context, public crypto.PublicKey, id *url.URL, now time.Time,
) (*x509.Certificate, error) {
	template := leaf(id.Path[1:], now, DeviceCertLife, x509.ExtKeyUsageClientAuth)
	template.URIs = []*url.URL{id}
	return k.issueLeaf(ctx, template, public, now)
}

// IssuedAt returns when a server or device certificate was issued, in whole seconds.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(leafEarly) }

func leaf(name string, now time.Time, life time.Duration, use x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: newSerialNumber(),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-leafEarly), NotAfter: now.Add(life),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{use},
	}
}

// newSerialNumber returns 127 random bits: positive, and at most 20 octets in DER as
// RFC 5280 §4.1.2.2 requires.
func newSerialNumber() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func (k *Keys) issueLeaf(
	ctx context.Context, template *x509.Certificate, public crypto.PublicKey, now time.Time,
) (*x509.Certificate, error) {
	key, err := k.Current(keyring.CA, now)
	if err != nil {
		return nil, err
	}
	if end := key.NotAfter; template.NotAfter.After(end) {
		template.NotAfter = end
	}
	parent := &x509.Certificate{Subject: k.caName(key), SubjectKeyId: key.ID[:]}
	return k.issue(ctx, key, template, parent, public)
}

// UpdateCerts returns the certificates of an MU for a phone at the kem epoch that is e
// modulo 64, at most eight: first the RootCerts after the root of that epoch, then the
// newest KeyCert of each use. An MU without the KeyCert of kem is of no use, so there are
// at most seven RootCerts.
func (k *Keys) UpdateCerts(e uint8, now time.Time) [][]byte {
	ring := k.Ring()
	certs := append([][]byte{}, ring.Settings.RootCerts[rootOf(ring, e):]...)
	certs = certs[max(0, len(certs)-(trust.MaxCerts-1)):]
	for _, name := range []string{keyring.KEM, keyring.Decision, keyring.CA, keyring.Enrol, keyring.ClientCA} {
		key, err := ring.Current(name, now)
		if err != nil {
			continue
		}
		if ruling, ok := rulingBefore(ring, key, now); ok && name == keyring.Decision {
			certs = append(certs, ruling.Cert)
		}
		certs = append(certs, key.Cert)
	}
	return certs[:min(len(certs), trust.MaxCerts)]
}

// rulingBefore returns the newest version before the one in use that rules out earlier ones. Phones judge receipts by
// it, also those that slept while it was in use.
func rulingBefore(ring *keyring.Ring, in keyring.Key, now time.Time) (keyring.Key, bool) {
	for _, k := range slices.Backward(ring.Versions(in.Name)) {
		holds := k.Root == in.Root && k.Begun(now) && k.CompromisedAt.IsZero() && !now.After(k.NotAfter)
		if k.Version < in.Version && k.RulesOut && holds {
			return k, true
		}
	}
	return keyring.Key{}, false
}

// rootOf returns the number of the root that certified the newest kem epoch that is e
// modulo 64; 1 if there is none.
func rootOf(ring *keyring.Ring, e uint8) uint64 {
	for _, kem := range slices.Backward(ring.Versions(keyring.KEM)) {
		if uint8(kem.Version%64) == e {
			return kem.Root
		}
	}
	return 1
}
