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

// server authenticates the appliance to an enrolled device: by the CA file, or by a key of ca
// that the pinned root certified. The file is written once, while ca changes with each epoch;
// a device with a file from an earlier epoch still recognises the appliance.
type server struct {
	roots *x509.CertPool
	host  string // name in a certificate by the CA file
	trust func() trust.State
}

// verify implements tls.Config.VerifyConnection: CodeCertificate if neither authenticates the server.
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
		return fmt.Errorf("server: by the CA file: %w; by the pinned root: %w", byFile, byKey)
	}
	return nil
}

// verifyChain verifies as crypto/tls does.
func (s server) verifyChain(chain []*x509.Certificate) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: intermediates, DNSName: s.host})
	return err
}

// current returns the keys of ca that are valid at a time: the adopted one, and earlier ones
// that it did not rule out.
func current(pinned trust.State, at time.Time) []trust.Key {
	return slices.DeleteFunc(caKeys(pinned, pinned.Earlier), func(k trust.Key) bool {
		return k.AcceptableAt(uint64(at.Unix()), nil) != nil
	})
}

// certified returns every key of ca that the root certified at enrolment, of any epoch.
func certified(pinned trust.State) []trust.Key {
	return caKeys(pinned, slices.Concat(pinned.Earlier, pinned.Later))
}

func caKeys(pinned trust.State, others []trust.Key) (keys []trust.Key) {
	if k, ok := pinned.Key(trust.UseCA); ok {
		keys = append(keys, k)
	}
	for _, k := range others {
		if k.Use == trust.UseCA {
			keys = append(keys, k)
		}
	}
	return keys
}

// checkServer returns an error unless one of these keys of ca signed the server's certificate.
// It ignores the host name: only the appliance has certificates for servers.
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
