package trust

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/cose"
	"countersign/protocol/internal/domain"
	"countersign/protocol/internal/strict"
	"countersign/protocol/message"
)

// Use is the purpose of a certified key, field 2 of a [KeyCert].
type Use uint8

// The uses of PROTOCOL.md §2.2.
const (
	UseKEM      Use = 1
	UseDecision Use = 2
	UseCA       Use = 3
	UseEnrol    Use = 4
	UseClientCA Use = 5
)

var useNames = map[Use]string{
	UseKEM: "kem", UseDecision: "decision", UseCA: "ca", UseEnrol: "enrol", UseClientCA: "client-ca",
}

func (u Use) String() string {
	if s, ok := useNames[u]; ok {
		return s
	}
	return fmt.Sprintf("use %d", uint8(u))
}

// KeyCert certifies one epoch of a key of the appliance under a root, PROTOCOL.md §2.2. It travels
// as
//
//	COSE_Sign1 by root, external_aad "OA1 keycert v1", payload
//	{1: epoch, 2: use, 3: key bstr33, 4: not-before, 5: not-after, ?6: minimum epoch, ?7: suite}
type KeyCert struct {
	Epoch     uint64             `cbor:"1,keyasint"`
	Use       Use                `cbor:"2,keyasint"`
	Key       protocol.PublicKey `cbor:"3,keyasint"`
	NotBefore uint64             `cbor:"4,keyasint"`           // Unix seconds
	NotAfter  uint64             `cbor:"5,keyasint"`           // Unix seconds, inclusive
	MinEpoch  *uint64            `cbor:"6,keyasint,omitempty"` // revokes every smaller epoch of this use
	Suite     uint8              `cbor:"7,keyasint,omitempty"` // of a kem key; 0: suite 1
}

const (
	maxEpochStep = 63        // messages carry the epoch modulo 64
	clockSlack   = 24 * 3600 // seconds by which a not-before may lie ahead
	kemGrace     = 30 * clockSlack
)

// SignKeyCert returns a certificate signed by signer, the root key.
func SignKeyCert(ctx context.Context, signer protocol.DigestSigner, k KeyCert) ([]byte, error) {
	b, err := cose.Sign(ctx, signer, domain.KeyCert, cbor.Marshal(k), nil)
	if err != nil {
		return nil, fmt.Errorf("signing key certificate of %v epoch %d: %w", k.Use, k.Epoch, err)
	}
	return b, nil
}

// VerifyKeyCert decodes a certificate and verifies its signature by root. Errors are CodeFormat or
// CodeCertificate. [KeyCert.AcceptableAt] checks dates and epochs.
func VerifyKeyCert(b []byte, root protocol.PublicKey) (KeyCert, error) {
	s, k, err := parseKeyCert(b)
	if err != nil {
		return KeyCert{}, err
	}
	return k, k.verify(s, root)
}

func (k KeyCert) verify(s cose.Sign1, root protocol.PublicKey) error {
	if !s.Verify(root, domain.KeyCert) {
		return protocol.CodeCertificate.Errorf("key certificate of %v epoch %d is not signed by root %v", k.Use, k.Epoch, root.RootID())
	}
	if _, err := protocol.ParsePublicKey(k.Key[:]); err != nil {
		return protocol.CodeCertificate.Errorf("key certificate of %v epoch %d does not contain a P-256 point", k.Use, k.Epoch)
	}
	return nil
}

func parseKeyCert(b []byte) (s cose.Sign1, k KeyCert, err error) {
	if s, _, err = cose.Parse(b, false); err != nil {
		return s, k, err
	}
	if err := strict.Map(s.Payload, &k); err != nil {
		return s, k, err
	}
	if _, ok := useNames[k.Use]; !ok {
		return s, k, protocol.CodeFormat.Errorf("key certificate for unknown %v", k.Use)
	}
	if k.Suite != 0 && (k.Suite != message.Suite2 || k.Use != UseKEM) {
		return s, k, protocol.CodeFormat.Errorf("key certificate of %v for suite %d", k.Use, k.Suite)
	}
	return s, k, nil
}

// AcceptableAt returns CodeCertificate unless clients and devices may adopt this verified
// certificate, by its epochs and then its dates (PROTOCOL.md §2.2). Wrong dates are a [DateError]. stored is the epoch
// held for this use, or nil. now is in Unix seconds.
func (k KeyCert) AcceptableAt(now uint64, stored *uint64) error {
	if k.MinEpoch != nil && *k.MinEpoch > k.Epoch {
		return protocol.CodeCertificate.Errorf("%v epoch %d is below its own minimum %d", k.Use, k.Epoch, *k.MinEpoch)
	}
	if stored != nil && (k.Epoch <= *stored || k.Epoch-*stored > maxEpochStep) {
		return protocol.CodeCertificate.Errorf("%v epoch %d does not follow the stored %d", k.Use, k.Epoch, *stored)
	}
	return k.validAt(now)
}

func (k KeyCert) validAt(now uint64) error {
	if k.begins() > now || k.NotAfter < now {
		return k.DateError(protocol.CodeCertificate, now)
	}
	return nil
}

// Recipient returns what an M1 to this kem key is sealed for. root certified the key.
func (k KeyCert) Recipient(root protocol.RootID) message.Recipient {
	return message.Recipient{Root: root, Suite: max(k.Suite, message.Suite1), Epoch: k.Epoch, Key: k.Key}
}

// begins returns the first second at which the certificate is acceptable.
func (k KeyCert) begins() uint64 { return k.NotBefore - min(k.NotBefore, clockSlack) }

// TakesM2At reports whether clients still accept an M2 under this kem epoch: until 30 days after its
// end, PROTOCOL.md §2.2.
func (k KeyCert) TakesM2At(now uint64) bool {
	return now <= k.NotAfter || now-k.NotAfter < kemGrace
}

// RootCert introduces root number n and commits to the key of n+1 by its hash,
// PROTOCOL.md §2.2. It travels as
//
//	COSE_Sign1 by root n itself, external_aad "OA1 rootcert v1", payload
//	{1: n, 2: key bstr33, 3: SHA-256(key of n+1) bstr32, 4: reason uint}
type RootCert struct {
	Number   uint64             `cbor:"1,keyasint"`
	Key      protocol.PublicKey `cbor:"2,keyasint"`
	NextHash [32]byte           `cbor:"3,keyasint"`
	Reason   uint64             `cbor:"4,keyasint"`
}

// SignRootCert returns a certificate signed by signer, which holds r.Key.
func SignRootCert(ctx context.Context, signer protocol.DigestSigner, r RootCert) ([]byte, error) {
	b, err := cose.Sign(ctx, signer, domain.RootCert, cbor.Marshal(r), nil)
	if err != nil {
		return nil, fmt.Errorf("signing certificate of root %d: %w", r.Number, err)
	}
	return b, nil
}

// VerifyRootCert decodes a certificate and verifies its signature by the key in it. Errors are
// CodeFormat or CodeCertificate. This does not make the key trustworthy: see [FollowRoots].
func VerifyRootCert(b []byte) (RootCert, error) {
	s, _, err := cose.Parse(b, false)
	if err != nil {
		return RootCert{}, err
	}
	var r RootCert
	if err := strict.Map(s.Payload, &r); err != nil {
		return RootCert{}, err
	}
	if !s.Verify(r.Key, domain.RootCert) {
		return RootCert{}, protocol.CodeCertificate.Errorf("root certificate %d is not signed by its own key", r.Number)
	}
	return r, nil
}

// follows reports whether this is the root that number n committed to with next.
func (r RootCert) follows(n uint64, next [32]byte) bool {
	return r.Number == n+1 && sha256.Sum256(r.Key[:]) == next
}

// FollowRoots verifies a chain of certificates and returns the last. The root pinned by number and
// next must have committed to the first, each to its successor. It returns CodeCertificate if the
// chain breaks. certs must not be empty.
func FollowRoots(number uint64, next [32]byte, certs [][]byte) (RootCert, error) {
	last := RootCert{Number: number, NextHash: next}
	if len(certs) == 0 {
		return last, protocol.CodeCertificate.Errorf("no root certificate")
	}
	for _, b := range certs {
		r, err := VerifyRootCert(b)
		if err != nil {
			return last, err
		}
		if !r.follows(last.Number, last.NextHash) {
			return last, protocol.CodeCertificate.Errorf("root certificate %d does not follow root %d", r.Number, last.Number)
		}
		last = r
	}
	return last, nil
}

// ClientCert certifies the keys of an enrolled client, PROTOCOL.md §5. It travels as
//
//	COSE_Sign1 by client-ca, {4: kid}, external_aad "OA1 clientcert v1", payload
//	{1: client id, 2: signing key, ?3: uv key, 4: not-before, 5: not-after}
type ClientCert struct {
	Client     protocol.ClientID   `cbor:"1,keyasint"`
	SigningKey protocol.PublicKey  `cbor:"2,keyasint"`
	UVKey      *protocol.PublicKey `cbor:"3,keyasint,omitempty"`
	NotBefore  uint64              `cbor:"4,keyasint"` // Unix seconds
	NotAfter   uint64              `cbor:"5,keyasint"` // Unix seconds, inclusive
}

// SignClientCert returns a certificate signed by signer, client-ca of this epoch.
func SignClientCert(ctx context.Context, signer protocol.DigestSigner, epoch uint64, c ClientCert) ([]byte, error) {
	b, err := cose.Sign(ctx, signer, domain.ClientCert, cbor.Marshal(c), cose.Kid(epoch))
	if err != nil {
		return nil, fmt.Errorf("signing certificate of client %v: %w", c.Client, err)
	}
	return b, nil
}

// VerifyClientCert decodes a certificate and verifies its signature by ca, its dates, and that the
// id is the hash of the signing key. Errors are CodeFormat or CodeCertificate. now is in Unix
// seconds.
func VerifyClientCert(b []byte, ca protocol.PublicKey, now uint64) (ClientCert, error) {
	p, err := parseClientCert(b)
	if err != nil {
		return ClientCert{}, err
	}
	return p.ClientCert, p.verify(ca, now)
}

// ReadClient decodes and verifies a client certificate of this epoch of client-ca. It returns
// CodeFormat, or CodeCertificate if the kid or the signature belongs to another epoch. It does not
// check dates: see [ClientCert.ValidAt].
func (k KeyCert) ReadClient(b []byte) (ClientCert, error) {
	p, err := parseClientCert(b)
	if err != nil {
		return ClientCert{}, err
	}
	if p.kid != byte(k.Epoch) {
		return ClientCert{}, protocol.CodeCertificate.Errorf("certificate of client %v names another epoch of client-ca than %d", p.Client, k.Epoch)
	}
	return p.ClientCert, p.verifySignature(k.Key)
}

// ValidAt returns CodeCertificate, a [DateError], if now, in Unix seconds, is outside the validity period.
func (c ClientCert) ValidAt(now uint64) error {
	if now < c.NotBefore || now > c.NotAfter {
		what := fmt.Sprintf("certificate of client %v", c.Client)
		return &DateError{Code: protocol.CodeCertificate, What: what, From: c.NotBefore, Until: c.NotAfter, Now: now}
	}
	return nil
}

// SameParty reports whether two certificates name the same client and keys.
func (c ClientCert) SameParty(other ClientCert) bool {
	hasUV, otherUV := c.UVKey != nil, other.UVKey != nil
	return c.Client == other.Client && c.SigningKey == other.SigningKey && hasUV == otherUV && (!hasUV || *c.UVKey == *other.UVKey)
}

// parsedClientCert is a certificate with an unverified signature.
type parsedClientCert struct {
	ClientCert
	signed cose.Sign1
	kid    byte
}

func parseClientCert(b []byte) (p parsedClientCert, err error) {
	if p.signed, p.kid, err = cose.Parse(b, true); err != nil {
		return p, err
	}
	return p, strict.Map(p.signed.Payload, &p.ClientCert)
}

func (p parsedClientCert) verify(ca protocol.PublicKey, now uint64) error {
	if err := p.verifySignature(ca); err != nil {
		return err
	}
	return p.ValidAt(now)
}

func (p parsedClientCert) verifySignature(ca protocol.PublicKey) error {
	if !p.signed.Verify(ca, domain.ClientCert) {
		return protocol.CodeCertificate.Errorf("certificate of client %v is not signed by client-ca", p.Client)
	}
	if protocol.ClientIDOf(p.SigningKey) != p.Client {
		return protocol.CodeCertificate.Errorf("certificate of client %v has another client's signing key", p.Client)
	}
	return nil
}

// KeyOf returns the key of a slot of P3.4: 1 is the signing key, 3 the UV key.
func (c ClientCert) KeyOf(slot uint64) (key protocol.PublicKey, ok bool) {
	switch {
	case slot == protocol.SlotSigning:
		return c.SigningKey, true
	case slot == protocol.SlotUV && c.UVKey != nil:
		return *c.UVKey, true
	}
	return protocol.PublicKey{}, false
}

// CheckServerCertificate returns CodeCertificate unless a client may enrol at the TLS server with
// this certificate (PROTOCOL.md §5): signed by the key of the `ca` KeyCert, valid now, with EKU
// serverAuth, which no other certificate has. It ignores the host name: the key is the identity.
func CheckServerCertificate(cert *x509.Certificate, ca protocol.PublicKey, now time.Time) error {
	key, err := ca.ECDSA()
	if err != nil {
		return protocol.CodeCertificate.Errorf("ca key: %v", err)
	}
	issuer := x509.Certificate{PublicKeyAlgorithm: x509.ECDSA, PublicKey: key}
	if cert.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return protocol.CodeCertificate.Errorf("server certificate is signed with %v", cert.SignatureAlgorithm)
	}
	if err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return protocol.CodeCertificate.Errorf("server certificate: %v", err)
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return protocol.CodeCertificate.Errorf("server certificate has no EKU serverAuth")
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return &DateError{
			Code: protocol.CodeCertificate, What: "server certificate",
			From: unix(cert.NotBefore), Until: unix(cert.NotAfter), Now: unix(now),
		}
	}
	if len(cert.UnhandledCriticalExtensions) != 0 {
		return protocol.CodeCertificate.Errorf("server certificate has critical extension %v", cert.UnhandledCriticalExtensions[0])
	}
	return nil
}

func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }
