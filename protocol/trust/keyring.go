package trust

import (
	"bytes"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/message"
)

// KeyUpdate is an MU: encoded RootCerts, then encoded KeyCerts.
type KeyUpdate struct{ Certs [][]byte }

// MaxCerts is the maximum number of certificates in an MU.
const MaxCerts = 8

const keyUpdateHeaderSize = 2

// Marshal returns the encoding of an MU of at most [MaxCerts] certificates.
func (u KeyUpdate) Marshal() []byte {
	header := []byte{message.KindKeyUpdate<<4 | message.Version, byte(len(u.Certs))}
	return append(header, bytes.Join(u.Certs, nil)...)
}

// ParseKeyUpdate splits an MU into its certificates, which share memory with b. It checks only that
// each is one canonical CBOR item.
func ParseKeyUpdate(b []byte) (KeyUpdate, error) {
	kind, err := message.Kind(b)
	if err != nil {
		return KeyUpdate{}, err
	}
	if kind != message.KindKeyUpdate || len(b) < keyUpdateHeaderSize {
		return KeyUpdate{}, protocol.CodeFormat.Errorf("message of kind %d and %d bytes is not an MU", kind, len(b))
	}
	n, rest := int(b[1]), b[keyUpdateHeaderSize:]
	if n > MaxCerts {
		return KeyUpdate{}, protocol.CodeFormat.Errorf("MU of %d certificates", n)
	}
	u := KeyUpdate{Certs: make([][]byte, n)}
	for i := range u.Certs {
		if u.Certs[i], rest, err = cbor.Next(rest); err != nil {
			return KeyUpdate{}, protocol.CodeFormat.Errorf("MU: %v", err)
		}
	}
	if len(rest) != 0 {
		return KeyUpdate{}, protocol.CodeFormat.Errorf("MU: %d trailing bytes", len(rest))
	}
	return u, nil
}

// Keyring is a root and key certificates, to verify decisions and client certificates with.
type Keyring struct {
	Root     protocol.PublicKey
	KeyCerts [][]byte // for decision and, on strict devices, client-ca; Keyring ignores other uses
	Now      uint64   // Unix seconds
}

// Keys returns the keys of a use that kid may select: their certificates are valid now and not
// revoked by the minimum epoch of a newer one.
func (k Keyring) Keys(use Use, kid byte) []protocol.PublicKey {
	var good []KeyCert
	var minimum uint64
	for _, b := range k.KeyCerts {
		s, c, err := parseKeyCert(b)
		if err != nil || c.Use != use || c.begins() > k.Now || ruledOut(c.Epoch, c.MinEpoch) || c.verify(s, k.Root) != nil {
			continue
		}
		// An expired certificate still revokes the epochs below its minimum.
		if c.MinEpoch != nil {
			minimum = max(minimum, *c.MinEpoch)
		}
		if c.NotAfter >= k.Now && byte(c.Epoch) == kid {
			good = append(good, c)
		}
	}
	var keys []protocol.PublicKey
	for _, c := range good {
		if c.Epoch >= minimum {
			keys = append(keys, c.Key)
		}
	}
	return keys
}

// ClientCert verifies a client certificate by a client-ca key of the keyring. Errors are CodeFormat
// or CodeCertificate.
func (k Keyring) ClientCert(b []byte) (ClientCert, error) {
	p, err := parseClientCert(b)
	if err != nil {
		return ClientCert{}, err
	}
	err = protocol.CodeCertificate.Errorf("no key certificate of client-ca with kid %d", p.kid)
	for _, ca := range k.Keys(UseClientCA, p.kid) {
		if err = p.verify(ca, k.Now); err == nil {
			return p.ClientCert, nil
		}
	}
	return ClientCert{}, err
}
