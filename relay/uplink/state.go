// Package uplink implements a device's link to the appliance: enrolment, the state directory,
// and calls over HTTP/2 with mutual TLS 1.3, PROTOCOL.md §5.
package uplink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Errors of a state directory and of an enrolment.
var (
	ErrEnrolled    = errors.New("device is enrolled already")
	ErrNotEnrolled = errors.New("device is not enrolled")
	ErrLocked      = errors.New("state directory is in use") // by another process
	ErrCA          = errors.New("CA file cannot be used")
	ErrClock       = errors.New("a clock is wrong") // of this device, or of the appliance
)

// Identity is a device's identity in its certificate.
type Identity struct {
	ID        protocol.DeviceID
	SPIFFE    string // spiffe://<trust domain>/device/<name>
	Name      string
	NotBefore time.Time
	NotAfter  time.Time
}

// State is the directory of an enrolled device:
//
//	key.pem      P-256 key, PKCS #8, mode 0600; it never leaves the device
//	device.json  {"certificates": [PEM], "trust": the pinned root and its KeyCerts}
//	lock         locked by the process that uses the directory
//
// device.json is replaced atomically and durably. A State is safe for concurrent use.
type State struct {
	dir string
	key *ecdsa.PrivateKey

	mu          sync.RWMutex // guards the following fields
	certificate *tls.Certificate
	identity    Identity
	trust       trust.State
}

const (
	keyFile     = "key.pem"
	requestFile = "request.pem"
	deviceFile  = "device.json"
	lockFile    = "lock"
)

type deviceJSON struct {
	Certificates []string    `json:"certificates"`
	Trust        trust.State `json:"trust"`
}

// Open reads the state of an enrolled device: [ErrNotEnrolled] if there is none. A process that
// acts for the device takes [Lock] first.
func Open(dir string) (*State, error) {
	raw, err := os.ReadFile(filepath.Join(dir, deviceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening state %s: %w", dir, ErrNotEnrolled)
	}
	if err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	var w deviceJSON
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, fmt.Errorf("opening state: %s: %w", filepath.Join(dir, deviceFile), err)
	}
	s := &State{dir: dir, key: key, trust: w.Trust}
	if s.certificate, s.identity, err = s.parse(w.Certificates); err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	return s, nil
}

// Lock locks a state directory until release is called or the process ends: [ErrLocked] if
// another process holds the lock, [ErrNotEnrolled] if there is no directory.
func Lock(dir string) (release func(), err error) {
	lock, err := durable.Lock(filepath.Join(dir, lockFile))
	switch {
	case errors.Is(err, fs.ErrNotExist): // the directory
		err = ErrNotEnrolled
	case errors.Is(err, durable.ErrLocked):
		err = ErrLocked
	}
	if err != nil {
		return nil, fmt.Errorf("locking state %s: %w", dir, err)
	}
	return func() { _ = lock.Close() }, nil
}

// InUse reports whether another process has the lock of a state directory.
func InUse(dir string) (bool, error) { return durable.InUse(filepath.Join(dir, lockFile)) }

// Identity returns the device's identity.
func (s *State) Identity() Identity {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.identity
}

// Trust returns the pinned root and the keys that it certified.
func (s *State) Trust() trust.State {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.trust
}

// setTrust stores a refreshed trust.
func (s *State) setTrust(t trust.State) error {
	t.EarlierRoots = nil // for receipts, and a device keeps none
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.saveLocked(s.certificate, t); err != nil {
		return err
	}
	s.trust = t
	return nil
}

// setCertificates stores a renewed chain. A chain of another device is an error.
func (s *State) setCertificates(chain []string) error {
	certificate, identity, err := s.parse(chain)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity.SPIFFE != "" && identity.SPIFFE != s.identity.SPIFFE {
		return fmt.Errorf("certificate is for %s, this device is %s: %w",
			identity.SPIFFE, s.identity.SPIFFE, protocol.CodeCertificate)
	}
	if err := s.saveLocked(certificate, s.trust); err != nil {
		return err
	}
	s.certificate, s.identity = certificate, identity
	return nil
}

// tlsCertificate implements tls.Config.GetClientCertificate.
func (s *State) tlsCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.certificate, nil
}

func (s *State) saveLocked(certificate *tls.Certificate, pinned trust.State) error {
	w := deviceJSON{Trust: pinned}
	for _, der := range certificate.Certificate {
		w.Certificates = append(w.Certificates, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	raw, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return fmt.Errorf("saving state: %w", err)
	}
	return durable.WriteFile(filepath.Join(s.dir, deviceFile), append(raw, '\n'), 0o600)
}

// parse parses a chain, which must be for this device's key and name a device.
func (s *State) parse(chain []string) (*tls.Certificate, Identity, error) {
	certificate := &tls.Certificate{PrivateKey: s.key}
	for _, text := range chain {
		if block, _ := pem.Decode([]byte(text)); block != nil {
			certificate.Certificate = append(certificate.Certificate, block.Bytes)
		}
	}
	if len(certificate.Certificate) == 0 {
		return nil, Identity{}, fmt.Errorf("no certificate: %w", protocol.CodeFormat)
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		return nil, Identity{}, fmt.Errorf("certificate: %v: %w", err, protocol.CodeFormat)
	}
	if !s.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, Identity{}, fmt.Errorf("certificate is for another key: %w", protocol.CodeCertificate)
	}
	certificate.Leaf = leaf
	identity, err := identityOf(leaf)
	return certificate, identity, err
}

func identityOf(leaf *x509.Certificate) (Identity, error) {
	if len(leaf.URIs) != 1 {
		return Identity{}, fmt.Errorf("certificate has %d URIs, want one SPIFFE ID: %w",
			len(leaf.URIs), protocol.CodeCertificate)
	}
	u := leaf.URIs[0]
	if u.Scheme != "spiffe" || u.Host == "" || !strings.HasPrefix(u.Path, "/device/") {
		return Identity{}, fmt.Errorf("certificate is for %s, not for a device: %w", u, protocol.CodeCertificate)
	}
	return Identity{
		ID: protocol.DeviceIDOf(u.String()), SPIFFE: u.String(), Name: path.Base(u.Path),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
	}, nil
}

func readKey(name string) (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if key, ok := key.(*ecdsa.PrivateKey); ok && key.Curve == elliptic.P256() {
		return key, nil
	}
	return nil, fmt.Errorf("%s: not a P-256 key", name)
}

// makeKey returns the key in the directory, which it generates if there is none.
func makeKey(dir string) (*ecdsa.PrivateKey, error) {
	name := filepath.Join(dir, keyFile)
	key, err := readKey(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
