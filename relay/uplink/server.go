package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/protocol"
	"countersign/protocol/trust"
)

// server says by whom a device knows the appliance once it is enrolled: by the CA
// file, or by a key of `ca` that the pinned root certified. The file is written
// once; `ca` goes from epoch to epoch, and a device whose file is of an old one still
// finds home.
type server struct {
	roots *x509.CertPool
	host  string // that the CA file vouches for
	trust func() trust.State
}

// verify is for tls.Config.VerifyConnection: CodeCertificate where neither holds.
func (s server) verify(c tls.ConnectionState) error {
	if len(c.PeerCertificates) == 0 {
		return fmt.Errorf("server without a certificate: %w", protocol.CodeCertificate)
	}
	byFile := s.verifyChain(c.PeerCertificates)
	if byFile == nil {
		return nil
	}
	pinned := s.trust()
	at := time.Unix(int64(now(pinned)), 0)
	if byKey := checkServer(current(pinned, at), c.PeerCertificates[0], at); byKey != nil {
		return fmt.Errorf("server: by the CA file: %v; by the pinned root: %w", byFile, byKey)
	}
	return nil
}

// verifyChain is what crypto/tls does.
func (s server) verifyChain(chain []*x509.Certificate) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: intermediates, DNSName: s.host})
	return err
}

// current gives the keys of ca whose time it is: the adopted one, and earlier ones
// that it did not rule out.
func current(pinned trust.State, at time.Time) []trust.Key {
	var keys []trust.Key
	if k, ok := pinned.Key(trust.UseCA); ok {
		keys = append(keys, k)
	}
	keys = append(keys, pinned.Earlier...)
	var good []trust.Key
	for _, k := range keys {
		if k.Use == trust.UseCA && k.AcceptableAt(uint64(at.Unix()), nil) == nil {
			good = append(good, k)
		}
	}
	return good
}

// checkServer says whether a server's certificate is by one of these keys of ca.
// The host name is not looked at: the appliance alone has certificates for servers.
func checkServer(keys []trust.Key, certificate *x509.Certificate, at time.Time) error {
	err := fmt.Errorf("no key certificate of ca: %w", protocol.CodeCertificate)
	for _, k := range keys {
		checked := trust.CheckServerCertificate(certificate, k.Key, at)
		if checked == nil {
			return nil
		}
		err = errors.Join(err, checked)
	}
	return err
}

// certified gives every key of ca that the root of an enrolment certified, of
// whatever epoch.
func certified(pinned trust.State) []trust.Key {
	var keys []trust.Key
	if k, ok := pinned.Key(trust.UseCA); ok {
		keys = append(keys, k)
	}
	for _, k := range slices.Concat(pinned.Earlier, pinned.Later) {
		if k.Use == trust.UseCA {
			keys = append(keys, k)
		}
	}
	return keys
}
