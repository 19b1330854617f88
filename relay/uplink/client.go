package uplink

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/trust"
)

// Config configures a [Client].
type Config struct {
	State   *State
	URL     string // https://HOST:PORT of the appliance
	CAFile  string // PEM, roots of the appliance's certificate, unless a trusted key of ca signed it
	Timeout time.Duration
	// AskEvery is the time between questions whether the appliance serves the device; 0: a minute.
	AskEvery time.Duration
	Log      hclog.Logger
	// Changed, if not nil, is called when the appliance has become reachable or unreachable,
	// or when the certificate or the trust has changed.
	Changed func()
}

// Client makes the calls of an enrolled device. Errors of calls wrap the code for ME. It is
// safe for concurrent use.
type Client struct {
	config     Config
	http       *conn
	open       *conn // to any server, without a certificate, for documents that prove themselves
	reachable  atomic.Bool
	started    atomic.Uint64 // calls
	refreshing sync.Mutex    // one refresh at a time, so that an older answer does not undo a newer one
	refreshed  time.Time     // start of the last RefreshTrust; guarded by refreshing

	mu      sync.Mutex // guards last, problem and changes of reachable
	last    uint64     // call that set reachable and problem
	problem problem
}

// NewClient returns a client that has not connected yet.
func NewClient(c Config) (*Client, error) {
	roots, err := readRoots(c.CAFile)
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("appliance address: %w", err)
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	c.AskEvery = cmp.Or(c.AskEvery, askPeriod)
	client := &Client{config: c, problem: problem{text: "no answer of the appliance yet"}}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, GetClientCertificate: c.State.tlsCertificate,
		// VerifyConnection accepts two authorities; crypto/tls knows only one of them.
		InsecureSkipVerify: true, //nolint:gosec // G402: VerifyConnection decides
		VerifyConnection:   server{roots: roots, host: base.Hostname(), trust: client.Trust}.verify,
	}
	client.http = newHTTP(c.URL, config, c.Timeout)
	anybody := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // G402: the caller verifies the answer under the pinned root
	}
	client.open = newHTTP(c.URL, anybody, c.Timeout)
	return client, nil
}

// Apply forwards an M1.
func (c *Client) Apply(ctx context.Context, r deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error) {
	body, err := c.call(ctx, post("/v1/apply", deviceapi.BodyType, r.Marshal()))
	return parsed(body, err, deviceapi.ParseApplyResponse)
}

// Countersign forwards an M3.
func (c *Client) Countersign(
	ctx context.Context, r deviceapi.CountersignRequest,
) (deviceapi.CountersignResponse, error) {
	body, err := c.call(ctx, post("/v1/countersign", deviceapi.BodyType, r.Marshal()))
	return parsed(body, err, deviceapi.ParseCountersignResponse)
}

// Outcome reports whether an approved act was performed. The first report wins. Only status 204 means that the
// appliance has stored it.
func (c *Client) Outcome(ctx context.Context, r deviceapi.OutcomeRequest) error {
	report := post("/v1/outcome", deviceapi.BodyType, r.Marshal())
	report.answer = ""
	_, err := c.call(ctx, report)
	return err
}

// parsed parses the answer of a call. If it does not parse, the appliance counts as unreachable.
func parsed[T any](body []byte, err error, parse func([]byte) (T, error)) (answer T, _ error) {
	if err != nil {
		return answer, err
	}
	if answer, err = parse(body); err != nil {
		return answer, fmt.Errorf("answer of the appliance: %v: %w", err, protocol.CodeServerUnreachable)
	}
	return answer, nil
}

// post is a request whose body and answer have the same media type.
func post(path, mediaType string, body []byte) request {
	return request{method: http.MethodPost, path: path, mediaType: mediaType, body: body, answer: mediaType}
}

// call makes a call. If the server is unknown, call refreshes the trust, which may now have the
// server's key of ca, and tries once more.
func (c *Client) call(ctx context.Context, r request) ([]byte, error) {
	body, err := c.callOnce(ctx, r)
	if errors.Is(err, errStranger) && c.RefreshTrust(ctx) == nil {
		body, err = c.callOnce(ctx, r)
	}
	return body, err
}

func (c *Client) callOnce(ctx context.Context, r request) ([]byte, error) {
	number := c.started.Add(1)
	body, err := c.http.call(ctx, r)
	if ctx.Err() == nil {
		c.note(c.judge(number, c.find(r, err)))
	}
	return body, err
}

// Reachable reports whether the appliance answered the last call.
func (c *Client) Reachable() bool { return c.reachable.Load() }

// Problem returns why the appliance does not serve this device, or "".
func (c *Client) Problem() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem.text
}

// Identity returns the device's identity.
func (c *Client) Identity() Identity { return c.config.State.Identity() }

// Trust returns the pinned root and its keys; keys whose time has come are adopted.
func (c *Client) Trust() trust.State {
	t := c.config.State.Trust()
	return t.Adopt(now(t))
}

// now returns the time for dates of key certificates, in Unix seconds.
func now(t trust.State) uint64 { return t.Time(uint64(time.Now().Unix())) }

// Close closes idle connections.
func (c *Client) Close() {
	c.http.closeIdle()
	c.open.closeIdle()
}

// DefaultTimeout limits a call by default. It exceeds the time that the appliance gives its HSM.
const DefaultTimeout = 10 * time.Second

// maxAnswer limits the length of an answer, in bytes.
const maxAnswer = 1 << 20

// StatusError is an answer of the appliance that reports a failure. It wraps the code for ME.
type StatusError struct {
	Status int           // HTTP status
	Code   protocol.Code // PROTOCOL.md §4
	Retry  time.Duration // 0: not in the answer
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("appliance answered %d: %v", e.Status, e.Code)
}

// Unwrap returns the code, as [protocol.Retry] if the answer has a time to retry.
func (e *StatusError) Unwrap() error {
	if e.Retry != 0 {
		return protocol.Retry{Code: e.Code, After: e.Retry}
	}
	return e.Code
}

// errStranger is wrapped by errors of calls to a server whose authority the device does not know.
var errStranger = errors.New("server is not known")

// conn makes calls over HTTP/2 and reconnects when necessary.
type conn struct {
	url     string
	timeout time.Duration
	client  *http.Client
}

type request struct {
	method, path, mediaType string
	body                    []byte
	answer                  string // media type of the answer, with status 200; "" is status 204 without one
	isOpen                  bool   // it needs no certificate
	isRecent                bool   // appliances of earlier releases do not know it: 404
}

func newHTTP(url string, config *tls.Config, timeout time.Duration) *conn {
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		TLSClientConfig: config, Protocols: protocols, TLSHandshakeTimeout: timeout, IdleConnTimeout: 10 * time.Minute,
		// Pings find a dead connection before a phone waits for it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client := &http.Client{Transport: transport, CheckRedirect: refuse}
	return &conn{url: strings.TrimSuffix(url, "/"), timeout: timeout, client: client}
}

func (c *conn) closeIdle() { c.client.CloseIdleConnections() }

// call makes one request and returns the body of its answer. Errors wrap the code for ME:
// [protocol.CodeServerUnreachable], [protocol.CodeTimeout], or the code of a [*StatusError]. If
// the connection breaks, call tries once more: every call of a device is idempotent.
func (c *conn) call(ctx context.Context, r request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	body, err := c.once(ctx, r)
	var answered *StatusError
	if err != nil && !errors.As(err, &answered) && ctx.Err() == nil {
		body, err = c.once(ctx, r)
	}
	switch {
	case err == nil || errors.As(err, &answered):
		return body, err
	case isTimeout(ctx, err):
		return nil, fmt.Errorf("calling %s: %v: %w", r.path, err, protocol.CodeTimeout)
	case errors.Is(err, protocol.CodeCertificate):
		return nil, fmt.Errorf("calling %s: %w: %w: %w", r.path, protocol.CodeServerUnreachable, errStranger, err)
	}
	return nil, fmt.Errorf("calling %s: %w: %w", r.path, protocol.CodeServerUnreachable, err) // the first code is for ME
}

func isTimeout(ctx context.Context, err error) bool {
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

func (c *conn) once(ctx context.Context, r request) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, c.url+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	if r.mediaType != "" {
		req.Header.Set("Content-Type", r.mediaType)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // an error does not matter after reading
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, statusError(resp, body)
	case !r.answeredBy(resp):
		return nil, fmt.Errorf("answer with status %d and content type %q is not the appliance's: %w",
			resp.StatusCode, resp.Header.Get("Content-Type"), protocol.CodeServerUnreachable)
	}
	return body, nil
}

// answeredBy reports whether an answer is the one that PROTOCOL.md §5 has for the request. Any other 2xx comes from
// something between device and appliance, or from an appliance that gave the request up.
func (r request) answeredBy(resp *http.Response) bool {
	if r.answer == "" {
		return resp.StatusCode == http.StatusNoContent
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return resp.StatusCode == http.StatusOK && mediaType == r.answer
}

// statusError reads problem+json. Any other answer, perhaps from a proxy, gets the code of its status.
func statusError(resp *http.Response, body []byte) error {
	e := &StatusError{Status: resp.StatusCode, Code: codeOfStatus(resp.StatusCode)}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if p, err := deviceapi.ParseProblem(body); err == nil && mediaType == deviceapi.ProblemType && p.Code != 0 {
		e.Code = p.Code
		e.Retry = time.Duration(min(p.Retry, maxRetry)) * time.Second
	}
	if n, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 32); err == nil {
		e.Retry = time.Duration(min(n, maxRetry)) * time.Second
	}
	return e
}

// maxRetry is the longest time to retry in an ME, in seconds.
const maxRetry = 255

func codeOfStatus(status int) protocol.Code {
	switch status {
	case http.StatusBadRequest:
		return protocol.CodeFormat
	case http.StatusForbidden, http.StatusUnauthorized:
		return protocol.CodeDevice
	case http.StatusGone:
		return protocol.CodeExpired
	case http.StatusTooManyRequests:
		return protocol.CodeBusy
	case http.StatusServiceUnavailable:
		return protocol.CodeHSM
	case http.StatusGatewayTimeout:
		return protocol.CodeTimeout
	}
	return protocol.CodeServerUnreachable
}
