// Package remote implements the client's HTTPS connection to the appliance during enrolment. The
// root of an activation code authenticates the server.
package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// maxBody is far above any enrolment answer, in bytes.
const maxBody = 1 << 20

const requestTimeout = 30 * time.Second

// Server is the appliance during enrolment.
type Server struct {
	// PasswordLength is the least length of a new password, in characters, once Trust has returned.
	PasswordLength int

	base *url.URL
	http *http.Client
	gate *gate
}

// gate accepts every TLS connection until it has keys, and then only servers with a certificate
// signed by one of them.
type gate struct {
	mu   sync.Mutex
	keys []protocol.PublicKey // guarded by mu; of ca
	now  time.Time            // guarded by mu; to check the certificate's dates
}

func (g *gate) close(keys []protocol.PublicKey, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keys, g.now = keys, now
}

// check verifies new connections, and the first one again.
func (g *gate) check(conn tls.ConnectionState) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys == nil {
		return nil
	}
	if len(conn.PeerCertificates) == 0 {
		return fmt.Errorf("server without a certificate: %w", protocol.CodeCertificate)
	}
	var err error
	for _, key := range g.keys {
		if err = trust.CheckServerCertificate(conn.PeerCertificates[0], key, g.now); err == nil {
			return nil
		}
	}
	return err
}

// New takes the appliance's address, https://host:port. It returns CodeFormat for another form.
func New(address string) (*Server, error) {
	base, err := url.Parse(address)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("appliance address %q is not https://host:port: %w", address, protocol.CodeFormat)
	}
	g := &gate{}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// The root of the activation code is the only authority. Until the client has it, it
			// reads the keys from any server and then verifies them.
			InsecureSkipVerify: true, //nolint:gosec // G402: VerifyConnection decides
			VerifyConnection:   g.check,
		},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: requestTimeout,
	}
	return &Server{base: base, gate: g, http: &http.Client{
		Transport: transport, Timeout: requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close closes idle connections.
func (s *Server) Close() { s.http.CloseIdleConnections() }

// Trust fetches and resolves the appliance's keys. From then on the Server accepts only certificates
// signed by `ca`, also for the connection that delivered the keys.
func (s *Server) Trust(ctx context.Context, root protocol.RootHash, now time.Time) (trust.State, error) {
	got, err := s.do(ctx, http.MethodGet, "trust", nil)
	if err != nil {
		return trust.State{}, fmt.Errorf("fetching the appliance's keys: %w", err)
	}
	d, err := trust.ParseDocument(got.body)
	if err != nil {
		return trust.State{}, fmt.Errorf("the appliance's keys: %w", err)
	}
	pinned, err := d.Resolve(root, unix(now))
	if err != nil {
		return trust.State{}, fmt.Errorf("the appliance's keys: %w", err)
	}
	at := pinned.Time(unix(now))
	keys, err := caKeys(pinned, at)
	if err != nil {
		return trust.State{}, err
	}
	s.gate.close(keys, time.Unix(int64(at), 0))
	if err := s.gate.check(got.conn); err != nil {
		return trust.State{}, fmt.Errorf("TLS server: %w", err)
	}
	s.PasswordLength = password.LengthOf(got.header.Get(password.HeaderLength))
	return pinned, nil
}

// caKeys returns the keys of `ca`. Without one the error is CodeCertificate, with the dates of a key that is not in
// force now, in Unix seconds.
func caKeys(pinned trust.State, now uint64) ([]protocol.PublicKey, error) {
	var keys []protocol.PublicKey
	if k, ok := pinned.Key(trust.UseCA); ok {
		keys = append(keys, k.Key)
	}
	for _, k := range pinned.Earlier {
		if k.Use == trust.UseCA {
			keys = append(keys, k.Key)
		}
	}
	if keys != nil {
		return keys, nil
	}
	var err error = protocol.CodeCertificate
	for _, k := range pinned.Later {
		if k.Use != trust.UseCA {
			continue
		}
		if bad := k.AcceptableAt(now, nil); bad != nil {
			err = bad
		}
		if k.NotBefore > now {
			break // the next one
		}
	}
	return nil, fmt.Errorf("the root certifies no key for TLS now: %w", err)
}

// Enrol sends an encoded enrolment request.
func (s *Server) Enrol(ctx context.Context, body []byte) (enrol.Response, error) {
	got, err := s.do(ctx, http.MethodPost, "enrol", body)
	if err != nil {
		return enrol.Response{}, fmt.Errorf("enrolling: %w", err)
	}
	return enrol.ParseResponse(got.body)
}

// answer is a 200 answer and the connection that it came by.
type answer struct {
	body   []byte
	header http.Header
	conn   tls.ConnectionState
}

// do returns a 200 answer, an [Error] for another status, and CodeServerUnreachable if
// the appliance cannot be reached.
func (s *Server) do(ctx context.Context, method, path string, body []byte) (got answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, s.base.JoinPath("v1", path).String(), bytes.NewReader(body))
	if err != nil {
		return got, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.http.Do(req)
	if err != nil {
		if _, coded := protocol.CodeOf(err); coded || ctx.Err() != nil {
			return got, err
		}
		return got, fmt.Errorf("%v: %w", err, protocol.CodeServerUnreachable)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if got.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody)); err != nil {
		return got, fmt.Errorf("reading the answer: %v: %w", err, protocol.CodeServerUnreachable)
	}
	if resp.StatusCode != http.StatusOK {
		problem, _ := deviceapi.ParseProblem(got.body)
		return got, &Error{Status: resp.StatusCode, Problem: problem}
	}
	got.header, got.conn = resp.Header, *resp.TLS
	return got, nil
}

func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// Error is an HTTP answer other than 200.
type Error struct {
	Status  int // HTTP status
	Problem deviceapi.Problem
}

func (e *Error) Error() string {
	text := fmt.Sprintf("the appliance answers %d", e.Status)
	for _, part := range []string{e.Problem.Title, e.Problem.Detail} {
		if part != "" {
			text += ": " + fmt.Sprintf("%.200q", part)
		}
	}
	return text
}

// Unwrap returns an error with the problem's code, if it has one.
func (e *Error) Unwrap() error { return e.Problem.Err() }
