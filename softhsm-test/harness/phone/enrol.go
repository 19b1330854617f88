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
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
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
	activation, err := enrol.ParseActivationCode(a.Code)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	pinned, err := FetchTrust(ctx, a.URL, activation.Root)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	p := Stranger(pinned).Give(a.Means)
	body, req, err := p.EnrolRequest(ctx, activation)
	if err != nil {
		return nil, err
	}
	raw, err := PostEnrolment(ctx, Enrolment{URL: a.URL, Trust: pinned, Body: body})
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	answer, err := enrol.ParseResponse(raw)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	p.Trust, _, err = answer.Check(req, pinned, unixNow())
	return p, err
}

// EnrolRequest makes the body of POST /v1/enrol.
func (p *Phone) EnrolRequest(ctx context.Context, code enrol.ActivationCode) ([]byte, enrol.Request, error) {
	req := enrol.Request{ActivationCode: code, SigningKey: p.Key.Point()}
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
	if req, err = enrol.Sign(ctx, req, p.Key, uv); err != nil {
		return nil, req, err
	}
	body, err := json.Marshal(req)
	return body, req, err
}

// wrapped is the verifier for the appliance's key `enrol` only, PROTOCOL.md §4.1.
func (p *Phone) wrapped(own protocol.PublicKey) (*enrol.Password, error) {
	enrolKey, ok := p.Trust.Key(trust.UseEnrol)
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
	raw, err := password.Wrap(*p.Verifier, ephemeral, derive.PasswordImport{
		Root: p.Trust.Root.RootID(), Ephemeral: point, Enrol: enrolKey.KeyCert.Key, SigningKey: own,
	})
	if err != nil {
		return nil, err
	}
	cost := password.Default
	return &enrol.Password{
		MemoryKiB: cost.MemoryKiB, Iterations: cost.Iterations, Parallelism: cost.Parallelism,
		Ephemeral: point, Wrapped: [enrol.WrappedVerifierSize]byte(raw),
	}, nil
}

// FetchTrust gets the trust document and follows it from the root of a code. Who
// served it does not matter: it is believed for its signatures.
func FetchTrust(ctx context.Context, url string, root protocol.RootHash) (trust.State, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/trust", nil)
	if err != nil {
		return trust.State{}, err
	}
	raw, err := do(req, func(tls.ConnectionState) error { return nil })
	if err != nil {
		return trust.State{}, err
	}
	document, err := trust.ParseDocument(raw)
	if err != nil {
		return trust.State{}, err
	}
	return document.Resolve(root, unixNow())
}

// Enrolment is a request for one appliance.
type Enrolment struct {
	URL   string
	Trust trust.State
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
		ca, ok := e.Trust.Key(trust.UseCA)
		if !ok {
			return errors.New("no ca key is trusted")
		}
		return trust.CheckServerCertificate(state.PeerCertificates[0], ca.Key, time.Now())
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
		problem, _ := deviceapi.ParseProblem(body) // without a problem the status is enough
		return nil, &Refusal{Status: res.StatusCode, Code: problem.Code}
	}
	return body, nil
}
