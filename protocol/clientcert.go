package protocol

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// ClientCert says which keys are an enrolled client's, PROTOCOL.md §5. It travels as
//
//	COSE_Sign1 by client-ca, {4: kid}, external_aad "OA1 clientcert v1", payload
//	{1: client id, 2: signing key, ?3: uv key, 4: not-before, 5: not-after}
type ClientCert struct {
	Client     ClientID   `cbor:"1,keyasint"`
	SigningKey PublicKey  `cbor:"2,keyasint"`
	UVKey      *PublicKey `cbor:"3,keyasint,omitempty"`
	NotBefore  uint64     `cbor:"4,keyasint"` // Unix seconds
	NotAfter   uint64     `cbor:"5,keyasint"` // Unix seconds, the last good one
}

// SignClientCert makes a certificate; signer is client-ca of this epoch.
func SignClientCert(ctx context.Context, signer DigestSigner, epoch uint64, c ClientCert) ([]byte, error) {
	b, err := sign1(ctx, signer, domainClientCert, marshal(c), kidOf(epoch))
	if err != nil {
		return nil, fmt.Errorf("signing certificate of client %v: %w", c.Client, err)
	}
	return b, nil
}

// VerifyClientCert reads a certificate and checks it against the key of
// client-ca, its dates and that the id is the hash of the signing key:
// CodeFormat or CodeCertificate. now is Unix seconds.
func VerifyClientCert(b []byte, ca PublicKey, now uint64) (ClientCert, error) {
	p, err := parseClientCert(b)
	if err != nil {
		return ClientCert{}, err
	}
	return p.ClientCert, p.verify(ca, now)
}

// parsedClientCert is a certificate whose signature is still to be verified.
type parsedClientCert struct {
	ClientCert
	signed Sign1
	kid    byte
}

func parseClientCert(b []byte) (p parsedClientCert, err error) {
	if p.signed, p.kid, err = parseSign1(b, true); err != nil {
		return p, err
	}
	return p, unmarshalExact(p.signed.Payload, &p.ClientCert, 1, 2, 3, 4, 5)
}

func (p parsedClientCert) verify(ca PublicKey, now uint64) error {
	if !p.signed.verify(ca, domainClientCert) {
		return certificateError("certificate of client %v is not signed by client-ca", p.Client)
	}
	if ClientIDOf(p.SigningKey) != p.Client {
		return certificateError("certificate of client %v has another client's signing key", p.Client)
	}
	if now < p.NotBefore || now > p.NotAfter {
		return certificateError("certificate of client %v is valid from %d to %d", p.Client, p.NotBefore, p.NotAfter)
	}
	return nil
}

// KeyOf gives the key of a slot of P3.4: 1 the signing key, 3 the UV key.
func (c ClientCert) KeyOf(slot uint64) (key PublicKey, ok bool) {
	switch {
	case slot == SlotSigning:
		return c.SigningKey, true
	case slot == SlotUV && c.UVKey != nil:
		return *c.UVKey, true
	}
	return PublicKey{}, false
}

// CheckServerCertificate says whether a client may enrol at the TLS server with
// this certificate, PROTOCOL.md §5: signed by the key of the `ca` KeyCert, in its
// dates, and with EKU serverAuth, which no other certificate has. CodeCertificate
// if not. The host name is not looked at: the key is the identity.
func CheckServerCertificate(cert *x509.Certificate, ca PublicKey, now time.Time) error {
	key, err := ca.ECDSA()
	if err != nil {
		return certificateError("ca key: %v", err)
	}
	issuer := x509.Certificate{PublicKeyAlgorithm: x509.ECDSA, PublicKey: key}
	if cert.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return certificateError("server certificate is signed with %v", cert.SignatureAlgorithm)
	}
	if err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return certificateError("server certificate: %v", err)
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return certificateError("server certificate has no EKU serverAuth")
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return certificateError("server certificate is valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if len(cert.UnhandledCriticalExtensions) != 0 {
		return certificateError("server certificate has critical extension %v", cert.UnhandledCriticalExtensions[0])
	}
	return nil
}

// kidOf is the kid header of an epoch: the epoch mod 256, one byte.
func kidOf(epoch uint64) []byte { return []byte{byte(epoch)} }
