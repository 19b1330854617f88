package phone

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"countersign/protocol"
	"countersign/protocol/password"
)

// Refusal is an answer other than 200.
type Refusal struct {
	Status int
	Code   protocol.Code // 0: none
}

func (e *Refusal) Error() string {
	return fmt.Sprintf("the appliance answers %d, code %d", e.Status, uint8(e.Code))
}

// Application is what a new phone enrols with.
type Application struct {
	URL   string // https://HOST:PORT
	Code  string // activation code
	Means Means
}

// Enrol enrols a new phone with its signing key only, at https://HOST:PORT.
func Enrol(ctx context.Context, url, code string) (*Phone, error) {
	return EnrolWith(ctx, Application{URL: url, Code: code})
}

// EnrolWith enrols a new phone, PROTOCOL.md §5. A refusal is a [*Refusal].
func EnrolWith(ctx context.Context, a Application) (*Phone, error) {
	activation, err := protocol.ParseActivationCode(a.Code)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	trust, err := FetchTrust(ctx, a.URL, activation.Root)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	p := Stranger(trust).Give(a.Means)
	body, req, err := p.EnrolRequest(ctx, activation)
	if err != nil {
		return nil, err
	}
	raw, err := PostEnrolment(ctx, Enrolment{URL: a.URL, Trust: trust, Body: body})
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	answer, err := protocol.ParseEnrolResponse(raw)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	p.Trust, _, err = answer.Check(req, trust, unixNow())
	return p, err
}

// EnrolRequest makes the body of POST /v1/enrol.
func (p *Phone) EnrolRequest(ctx context.Context, code protocol.ActivationCode) ([]byte, protocol.EnrolRequest, error) {
	req := protocol.EnrolRequest{ActivationCode: code, SigningKey: p.Key.Point()}
	var uv protocol.DigestSigner
	var err error
	if p.UV != nil {
		point := p.UV.Point()
		req.UVKey, uv = &point, *p.UV
	}
	if p.Verifier != nil {
		if req.Password, err = p.wrapped(req.SigningKey); err != nil {
			return nil, req, err
		}
	}
	if req, err = protocol.SignEnrol(ctx, req, p.Key, uv); err != nil {
		return nil, req, err
	}
	body, err := json.Marshal(req)
	return body, req, err
}

// wrapped is the verifier for the appliance's key `enrol` only, PROTOCOL.md §4.1.
func (p *Phone) wrapped(own protocol.PublicKey) (*protocol.PasswordEnrolment, error) {
	enrol, ok := p.Trust.Key(protocol.UseEnrol)
	if !ok {
		return nil, errors.New("phone: no enrol key")
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := protocol.CompressPoint(ephemeral.PublicKey().Bytes())
	if err != nil {
		return nil, err
	}
	raw, err := password.Wrap(*p.Verifier, ephemeral, protocol.PasswordImport{
		Root: p.Trust.Root.RootID(), Ephemeral: point, Enrol: enrol.KeyCert.Key, SigningKey: own,
	})
	if err != nil {
		return nil, err
	}
	cost := password.Default
	return &protocol.PasswordEnrolment{
		MemoryKiB: cost.MemoryKiB, Iterations: cost.Iterations, Parallelism: cost.Parallelism,
		Ephemeral: point, Wrapped: [protocol.WrappedVerifierSize]byte(raw),
	}, nil
}

// FetchTrust gets the trust document and follows it from the root of a code. Who
// served it does not matter: it is believed for its signatures.
func FetchTrust(ctx context.Context, url string, root protocol.RootHash) (protocol.Trust, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/trust", nil)
	if err != nil {
		return protocol.Trust{}, err
	}
	raw, err := do(req, func(tls.ConnectionState) error { return nil })
	if err != nil {
		return protocol.Trust{}, err
	}
	document, err := protocol.ParseTrustDocument(raw)
	if err != nil {
		return protocol.Trust{}, err
	}
	return document.Resolve(root, unixNow())
}

// Enrolment is a request for one appliance.
type Enrolment struct {
	URL   string
	Trust protocol.Trust
	Body  []byte
}

// PostEnrolment posts over TLS whose server certificate is by the trusted `ca` key.
func PostEnrolment(ctx context.Context, e Enrolment) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL+"/v1/enrol", bytes.NewReader(e.Body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return do(req, func(state tls.ConnectionState) error {
		ca, ok := e.Trust.Key(protocol.UseCA)
		if !ok {
			return errors.New("no ca key is trusted")
		}
		return protocol.CheckServerCertificate(state.PeerCertificates[0], ca.Key, time.Now())
	})
}

// do makes a request over a connection of its own. The name in the server's
// certificate does not count, its key does: verify looks at it.
func do(req *http.Request, verify func(tls.ConnectionState) error) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: verify},
		DisableKeepAlives: true,
	}}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		problem, _ := protocol.ParseProblem(body) // without a problem the status is enough
		return nil, &Refusal{Status: res.StatusCode, Code: problem.Code}
	}
	return body, nil
}
