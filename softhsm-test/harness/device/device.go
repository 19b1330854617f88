// Package device is an authorization device made of PROTOCOL.md alone. It forwards
// nothing and acts on nothing: it makes the calls of the second link, honest or not.
package device

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// Config says where the appliance is.
type Config struct {
	URL string // https://HOST:PORT
	CA  string // PEM file
}

// Device is one identity at one appliance.
type Device struct {
	ID     protocol.DeviceID
	Trust  trust.State
	Chain  []string // PEM: its certificate, then the authorities
	config Config
	roots  *x509.CertPool
	cert   *tls.Certificate // nil: none
	client *http.Client
}

// Anonymous is a caller without a certificate.
func Anonymous(c Config) (*Device, error) {
	raw, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	d := &Device{config: c, roots: x509.NewCertPool()}
	if !d.roots.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("device: no certificate in %s", c.CA)
	}
	d.connect()
	return d, nil
}

// connect makes a client that has no connection yet.
func (d *Device) connect() {
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.roots}
	if d.cert != nil {
		config.Certificates = []tls.Certificate{*d.cert}
	}
	d.client = &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}, Timeout: 20 * time.Second}
}

// At is the same device at another address of its appliance.
func (d *Device) At(url string) *Device {
	moved := *d
	moved.config.URL = url
	moved.connect()
	return &moved
}

// Close ends the connections.
func (d *Device) Close() { d.client.CloseIdleConnections() }

// Enrol enrols a new device with an activation code, PROTOCOL.md §5.
func Enrol(ctx context.Context, c Config, code string) (*Device, error) {
	activation, err := enrol.ParseActivationCode(code)
	if err != nil {
		return nil, fmt.Errorf("enrolling a device: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	body, err := enrolBody(activation, key)
	if err != nil {
		return nil, err
	}
	d, err := Anonymous(c)
	if err != nil {
		return nil, err
	}
	answer, err := d.Post(ctx, Call{Path: "/v1/enrol/device", Type: "application/json", Body: body})
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK {
		return nil, fmt.Errorf("enrolling a device: %w", answer.refusal())
	}
	return d, d.become(activation, key, answer.Body)
}

func enrolBody(code enrol.ActivationCode, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	return json.Marshal(enrol.DeviceRequest{ActivationCode: code, CSR: csr})
}

// become takes over the identity that an enrolment gave.
func (d *Device) become(code enrol.ActivationCode, key *ecdsa.PrivateKey, body []byte) error {
	answer, err := enrol.ParseDeviceResponse(body)
	if err != nil {
		return fmt.Errorf("enrolling a device: %w", err)
	}
	if d.Trust, err = answer.Trust.Resolve(code.Root, uint64(time.Now().Unix())); err != nil {
		return fmt.Errorf("enrolling a device: %w", err)
	}
	block, _ := pem.Decode([]byte(answer.Certificates[0]))
	if block == nil {
		return fmt.Errorf("enrolling a device: certificate is no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("enrolling a device: %w", err)
	}
	if len(cert.URIs) != 1 {
		return fmt.Errorf("enrolling a device: certificate with %d URIs", len(cert.URIs))
	}
	d.Chain, d.ID = answer.Certificates, protocol.DeviceIDOf(cert.URIs[0].String())
	d.cert = &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	d.Close() // the connection so far has no certificate
	d.connect()
	return nil
}

// Call is a POST.
type Call struct {
	Path, Type string
	Body       []byte
}

// Answer is any response.
type Answer struct {
	Status     int
	Type       string
	RetryAfter string
	Body       []byte
	Code       protocol.Code // of problem+json, 0: none
}

func (a Answer) refusal() error { return &Refusal{Status: a.Status, Code: a.Code} }

// Refusal is an answer other than success.
type Refusal struct {
	Status int
	Code   protocol.Code
}

func (e *Refusal) Error() string {
	return fmt.Sprintf("the appliance answers %d, code %d", e.Status, uint8(e.Code))
}

// Post makes a call and reads the answer. An error is one of the connection.
func (d *Device) Post(ctx context.Context, c Call) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.config.URL+c.Path, bytes.NewReader(c.Body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", c.Type)
	res, err := d.client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Status: res.StatusCode, Type: res.Header.Get("Content-Type"), RetryAfter: res.Header.Get("Retry-After"), Body: body}
	if a.Type == deviceapi.ProblemType {
		problem, err := deviceapi.ParseProblem(body)
		if err != nil {
			return a, err
		}
		a.Code = problem.Code
	}
	return a, nil
}

// NewNonce is the device's 16 bytes of an apply.
func NewNonce() (n protocol.Nonce) {
	_, _ = rand.Read(n[:]) // never fails, crypto/rand
	return n
}

// Apply is POST /v1/apply. A refusal is a [*Refusal].
func (d *Device) Apply(ctx context.Context, req deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error) {
	body, err := d.call(ctx, "/v1/apply", req.Marshal())
	if err != nil {
		return deviceapi.ApplyResponse{}, err
	}
	return deviceapi.ParseApplyResponse(body)
}

// Countersign is POST /v1/countersign. A refusal is a [*Refusal].
func (d *Device) Countersign(ctx context.Context, req deviceapi.CountersignRequest) (deviceapi.CountersignResponse, error) {
	body, err := d.call(ctx, "/v1/countersign", req.Marshal())
	if err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	return deviceapi.ParseCountersignResponse(body)
}

// Outcome is POST /v1/outcome. A refusal is a [*Refusal].
func (d *Device) Outcome(ctx context.Context, req deviceapi.OutcomeRequest) error {
	_, err := d.call(ctx, "/v1/outcome", req.Marshal())
	return err
}

func (d *Device) call(ctx context.Context, path string, body []byte) ([]byte, error) {
	answer, err := d.Post(ctx, Call{Path: path, Type: deviceapi.BodyType, Body: body})
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK && answer.Status != http.StatusNoContent {
		return nil, answer.refusal()
	}
	return answer.Body, nil
}

// Check is what the device knows when it has a decision in hand, for
// [receipt.Check]; the caller adds services and amount of the order.
func (d *Device) Check(nonce protocol.Nonce, m2 []byte) (receipt.Check, error) {
	chal, err := message.ChallengeOf(m2)
	return receipt.Check{
		Root: d.Trust.Root, KeyCerts: d.Trust.KeyCerts(trust.UseDecision), Now: d.Trust.Time(uint64(time.Now().Unix())),
		Device: d.ID, Nonce: nonce, Challenges: []protocol.Challenge{chal},
	}, err
}
