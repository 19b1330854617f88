package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"countersign/internal/durable"
	"countersign/protocol/enrol"
)

// EnrolConfig configures an enrolment.
type EnrolConfig struct {
	URL      string // https://HOST:PORT of the appliance
	CAFile   string // PEM, roots of the appliance's certificate
	Code     enrol.ActivationCode
	StateDir string        // created with mode 0700
	Timeout  time.Duration // 0: 10 s
}

// Enrol generates the device's key, has it certified, and pins the root that the activation
// code names. It can be repeated with the same code until it succeeds, and then uses the same
// key and sends the same bytes. [ErrEnrolled] if the directory has a device; [ErrCA]; [ErrClock];
// CodeCertificate if the code names another root or the server is not certified by it; otherwise the
// code in the appliance's answer.
func Enrol(ctx context.Context, c EnrolConfig) (Identity, error) {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return Identity{}, fmt.Errorf("enrolling: %w", err)
	}
	release, err := Lock(c.StateDir)
	if err != nil {
		return Identity{}, fmt.Errorf("enrolling: %w", err)
	}
	defer release()
	if _, err := os.Stat(filepath.Join(c.StateDir, deviceFile)); !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("enrolling in %s: %w", c.StateDir, errors.Join(ErrEnrolled, err))
	}
	identity, err := enrolDevice(ctx, c)
	if p := problemOf(err, time.Now()); p.kind == kindClock {
		err = fmt.Errorf("%w: %s", ErrClock, p.text)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("enrolling: %w", err)
	}
	return identity, nil
}

func enrolDevice(ctx context.Context, c EnrolConfig) (Identity, error) {
	key, err := makeKey(c.StateDir)
	if err != nil {
		return Identity{}, err
	}
	request, err := makeRequest(c, key)
	if err != nil {
		return Identity{}, err
	}
	answer, server, err := postEnrolment(ctx, c, request)
	if err != nil {
		return Identity{}, err
	}
	now := time.Now()
	trust, err := answer.Trust.Resolve(c.Code.Root, uint64(now.Unix()))
	if err != nil {
		return Identity{}, err
	}
	if err := checkServer(certified(trust), server, now); err != nil {
		return Identity{}, err
	}
	s := &State{dir: c.StateDir, key: key, trust: trust}
	if err := s.setCertificates(answer.Certificates); err != nil {
		return Identity{}, err
	}
	return s.Identity(), os.Remove(filepath.Join(c.StateDir, requestFile))
}

// makeRequest returns the body of the enrolment. The certificate request has a random signature;
// it is stored until the device is enrolled, so that a repeat sends the same one.
func makeRequest(c EnrolConfig, key *ecdsa.PrivateKey) ([]byte, error) {
	name := filepath.Join(c.StateDir, requestFile)
	csr, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if csr, err = newRequest(key); err == nil {
			err = durable.WriteFile(name, csr, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(enrol.DeviceRequest{ActivationCode: c.Code, CSR: string(csr)})
}

// newRequest returns a PKCS #10 request in PEM without a subject. The appliance takes the name
// from the activation code or from the present certificate.
func newRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	template := &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("making certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func postEnrolment(ctx context.Context, c EnrolConfig, body []byte) (enrol.DeviceResponse, *x509.Certificate, error) {
	roots, err := readRoots(c.CAFile)
	if err != nil {
		return enrol.DeviceResponse{}, nil, err
	}
	var server *x509.Certificate
	config := tlsConfig(roots)
	config.VerifyConnection = func(s tls.ConnectionState) error {
		server = s.PeerCertificates[0]
		return nil
	}
	h := newHTTP(c.URL, config, c.Timeout)
	defer h.closeIdle()
	raw, err := h.call(ctx, post("/v1/enrol/device", "application/json", body))
	if err != nil {
		return enrol.DeviceResponse{}, nil, err
	}
	answer, err := enrol.ParseDeviceResponse(raw)
	return answer, server, err
}

// CheckCA returns [ErrCA] unless a file has a certificate.
func CheckCA(file string) error {
	_, err := readRoots(file)
	return err
}

func readRoots(file string) (*x509.CertPool, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCA, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%w: no certificate in %s", ErrCA, file)
	}
	return roots, nil
}

func tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
}
