package keyring

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Lifetimes of what the appliance issues.
const (
	// ServerCertLife: the API's TLS certificate, renewed at half-life.
	ServerCertLife = day
	// DeviceCertLife: a device renews its own at half-life (POST /v1/renew).
	DeviceCertLife = 30 * day
	clientCertLife = 5 * 365 * day
)

// TrustDocument is the answer of GET /v1/trust.
func (r *Keyring) TrustDocument(now time.Time) trust.Document {
	v := r.live.Load()
	return trust.Document{
		RootKey: v.root().Point, NextRootHash: v.settings.NextRootHash, RootCerts: v.settings.RootCerts, KeyCerts: v.keyCerts(now),
	}
}

// keyCerts are the KeyCerts by the current root that have not ended at now and were
// not withdrawn, those of epochs that have not begun among them.
func (v *ring) keyCerts(now time.Time) [][]byte {
	var certs [][]byte
	for _, k := range v.all() {
		if v.published(k, now) && !now.After(k.NotAfter) {
			certs = append(certs, k.Cert)
		}
	}
	return certs
}

// published tells whether the key's KeyCert is given to phones and devices. One that
// rules out the epoch in use is not, before it is in use itself.
func (v *ring) published(k Key, now time.Time) bool {
	return k.Name != Root && k.Cert != nil && k.Root == v.rootNumber() && k.held() && (!k.RulesOut || k.begun(now))
}

// ClientCert issues a client certificate, PROTOCOL.md §5.
func (r *Keyring) ClientCert(ctx context.Context, cert trust.ClientCert, now time.Time) ([]byte, error) {
	key, err := r.Current(ClientCA, now)
	if err != nil {
		return nil, err
	}
	cert.NotBefore, cert.NotAfter = uint64(now.Add(-startEarly).Unix()), uint64(now.Add(clientCertLife).Unix())
	return trust.SignClientCert(ctx, r.Signer(key), key.Version, cert)
}

// Issued is a client certificate that an epoch of client-ca has signed.
type Issued struct {
	trust.ClientCert
	// Held: a strict device can verify it. It is in its dates and its epoch is one that
	// devices are given.
	Held bool
	// Doubtful: its epoch was compromised, or ruled out by a later one, so that anybody
	// may have signed it.
	Doubtful bool
}

// ReadClientCert reads a client certificate of any epoch of client-ca: the one in use, one
// that is over or retired, one of an earlier root. Of which epoch it is, its kid tells
// modulo 256. An error wraps [protocol.CodeFormat] or [protocol.CodeCertificate].
func (r *Keyring) ReadClientCert(cert []byte, now time.Time) (Issued, error) {
	v := r.live.Load()
	err := fmt.Errorf("key %q: %w", ClientCA, protocol.CodeCertificate)
	for _, k := range slices.Backward(v.keys[ClientCA]) {
		var i Issued
		if i.ClientCert, err = (trust.KeyCert{Epoch: k.Version, Key: k.Point}).ReadClient(cert); err == nil {
			i.Held = v.published(k, now) && k.dated(now) && i.ValidAt(uint64(now.Unix())) == nil
			i.Doubtful = !k.CompromisedAt.IsZero() || v.isRuledOut(k, now)
			return i, nil
		}
	}
	return Issued{}, err
}

// isRuledOut: the KeyCert of a later version that has begun rules this one out.
func (v *ring) isRuledOut(k Key, now time.Time) bool {
	return slices.ContainsFunc(v.keys[k.Name], func(later Key) bool {
		return later.Version > k.Version && later.RulesOut && later.begun(now)
	})
}

// Issuer is the certificate of the ca epoch that issues at now.
func (r *Keyring) Issuer(ctx context.Context, now time.Time) (*x509.Certificate, error) {
	key, err := r.Current(CA, now)
	if err != nil {
		return nil, err
	}
	return r.authority(ctx, key)
}

// Authorities are the X.509 certificates of every ca epoch that is not over at now,
// for the verification of callers: a later one may begin while they are in use. They are self-signed and made anew at each
// start; what counts is the key, which a KeyCert certifies.
func (r *Keyring) Authorities(ctx context.Context, now time.Time) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, key := range r.live.Load().acceptedOf(CA, now) {
		cert, err := r.authority(ctx, key)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("key %q: %w", CA, ErrNoKey)
	}
	return out, nil
}

// StoreAuthorities puts the X.509 certificate of each ca epoch beside its key, so that
// the tools of others see whose it is. Nothing here reads them, and a module that has
// no certificates is as good.
func (r *Keyring) StoreAuthorities(ctx context.Context) error {
	for _, key := range r.live.Load().keys[CA] {
		if !key.DestroyedAt.IsZero() {
			continue
		}
		cert, err := r.authority(ctx, key)
		if err != nil {
			return err
		}
		err = r.token.StoreCertificate(ctx, hsm.Certificate{Key: key.ID, Label: key.label(), DER: cert.Raw})
		if err != nil && !errors.Is(err, hsm.ErrUnsupported) {
			return fmt.Errorf("storing the certificate of %s: %w", key.label(), err)
		}
	}
	return nil
}

func (r *Keyring) authority(ctx context.Context, key Key) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(key.Version)),
		Subject:      r.caName(key),
		NotBefore:    key.NotBefore, NotAfter: key.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:     x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		SubjectKeyId: key.ID[:],
	}
	return r.issue(ctx, key, template, template, nil)
}

func (r *Keyring) caName(key Key) pkix.Name {
	return pkix.Name{CommonName: fmt.Sprintf("%s ca %d", r.Domain(), key.Version)}
}

// issue signs template with the ca key; a nil public key means the ca's own.
func (r *Keyring) issue(ctx context.Context, key Key, template, parent *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	signer, err := r.Signer(key).forCertificates(ctx)
	if err != nil {
		return nil, err
	}
	if public == nil {
		public = signer.Public()
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// ServerCert issues a TLS server certificate for these DNS names and addresses.
// No other certificate has the extended key usage serverAuth.
func (r *Keyring) ServerCert(ctx context.Context, public crypto.PublicKey, names []string, now time.Time) (*x509.Certificate, error) {
	template := leaf("appliance", now, ServerCertLife, x509.ExtKeyUsageServerAuth)
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return r.issueLeaf(ctx, template, public, now)
}

// DeviceCert issues a TLS client certificate for the party with this SPIFFE ID.
func (r *Keyring) DeviceCert(ctx context.Context, public crypto.PublicKey, id *url.URL, now time.Time) (*x509.Certificate, error) {
	template := leaf(id.Path[1:], now, DeviceCertLife, x509.ExtKeyUsageClientAuth)
	template.URIs = []*url.URL{id}
	return r.issueLeaf(ctx, template, public, now)
}

// leafEarly is how long before its issue an X.509 certificate begins, for peers
// whose clock is behind.
const leafEarly = time.Hour

// IssuedAt is when a server or device certificate was issued, in whole seconds.
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

// newSerialNumber is 127 random bits: positive, and at most 20 octets in DER as
// RFC 5280 §4.1.2.2 wants.
func newSerialNumber() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func (r *Keyring) issueLeaf(ctx context.Context, template *x509.Certificate, public crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	key, err := r.Current(CA, now)
	if err != nil {
		return nil, err
	}
	if end := key.NotAfter; template.NotAfter.After(end) {
		template.NotAfter = end
	}
	parent := &x509.Certificate{Subject: r.caName(key), SubjectKeyId: key.ID[:]}
	return r.issue(ctx, key, template, parent, public)
}

// UpdateCerts are the certificates of an MU for a phone at the kem epoch that is e
// modulo 64: at most eight, the RootCerts that follow on the root of that epoch first,
// then the newest KeyCert of each use. Without that of kem it would be of no use, so
// of RootCerts there are seven at most.
func (r *Keyring) UpdateCerts(e uint8, now time.Time) [][]byte {
	v := r.live.Load()
	certs := append([][]byte{}, v.settings.RootCerts[v.rootOf(e):]...)
	certs = certs[max(0, len(certs)-(trust.MaxCerts-1)):]
	for _, name := range []string{KEM, Decision, CA, Enrol, ClientCA} {
		if key, err := v.current(name, now); err == nil {
			certs = append(certs, key.Cert)
		}
	}
	return certs[:min(len(certs), trust.MaxCerts)]
}

// rootOf is the number of the root that certified the newest kem epoch that is e
// modulo 64; 1 where there is none.
func (v *ring) rootOf(e uint8) uint64 {
	for _, k := range slices.Backward(v.keys[KEM]) {
		if uint8(k.Version%64) == e {
			return k.Root
		}
	}
	return 1
}
