package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// DefaultTimeout bounds a call whose caller says nothing: it is more than the
// appliance lets its HSM take.
const DefaultTimeout = 10 * time.Second

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// StatusError is an answer of the appliance that is no success. It wraps the
// code that goes into ME.
type StatusError struct {
	Status int           // HTTP status
	Code   protocol.Code // PROTOCOL.md §4
	Retry  time.Duration // 0: the answer does not say
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("appliance answered %d: %v", e.Status, e.Code)
}

// Unwrap gives the code, as [protocol.Retry] if the answer says when.
func (e *StatusError) Unwrap() error {
	if e.Retry != 0 {
		return protocol.Retry{Code: e.Code, After: e.Retry}
	}
	return e.Code
}

// errStranger: the server's certificate is by no authority that this device knows.
var errStranger = errors.New("server is not known")

// conn makes calls over HTTP/2 and connects again by itself.
type conn struct {
	url     string
	timeout time.Duration
	client  *http.Client
}

type request struct {
	method, path, mediaType string
	body                    []byte
}

func newHTTP(url string, config *tls.Config, timeout time.Duration) *conn {
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		TLSClientConfig: config, Protocols: protocols, TLSHandshakeTimeout: timeout, IdleConnTimeout: 10 * time.Minute,
		// A connection that died without a word is found before a phone waits for it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &conn{url: strings.TrimSuffix(url, "/"), timeout: timeout, client: &http.Client{Transport: transport, CheckRedirect: refuse}}
}

func (c *conn) closeIdle() { c.client.CloseIdleConnections() }

// call makes one request and gives the body of a 2xx. Errors wrap the code for
// ME: [protocol.CodeServerUnreachable], [protocol.CodeTimeout], or that of a
// [*StatusError]. A broken connection is tried once more: every call of a device has
// the same effect twice as once.
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
		return nil, fmt.Errorf("calling %s: %w: %v: %w", r.path, errStranger, err, protocol.CodeServerUnreachable)
	}
	return nil, fmt.Errorf("calling %s: %v: %w", r.path, err, protocol.CodeServerUnreachable)
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
	defer func() { _ = resp.Body.Close() }() // read to its end below, or of no use
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, statusError(resp, body)
	}
	return body, nil
}

// statusError reads problem+json; an answer that is none, of a proxy perhaps,
// counts by its status.
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

// maxRetry is the longest time in seconds that an ME can say.
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
