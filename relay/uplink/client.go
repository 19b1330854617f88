package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/trust"
)

// Config is what a [Client] needs.
type Config struct {
	State   *State
	URL     string // https://HOST:PORT of the appliance
	CAFile  string // PEM, what the appliance's certificate chains to, unless a trusted key of ca signed it
	Timeout time.Duration
	Log     hclog.Logger
	// Changed is called when the appliance has become reachable or unreachable,
	// or when the certificate or the trust has changed; nil is nobody.
	Changed func()
}

// Client makes the calls of an enrolled device. Errors of calls wrap the code that
// D tells C in ME. It is safe for concurrent use.
type Client struct {
	config     Config
	http       *conn
	open       *conn // to any server, without a certificate: for what proves itself
	reachable  atomic.Bool
	started    atomic.Uint64 // calls
	refreshing sync.Mutex    // one refresh at a time, so that an older answer does not undo a newer one
	refreshed  time.Time     // guarded by refreshing; when the last one that was asked for began

	mu   sync.Mutex // guards what follows, and changes of reachable
	last uint64     // call that reachable is of
}

// NewClient makes a client; it does not connect yet.
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
	client := &Client{config: c}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, GetClientCertificate: c.State.tlsCertificate,
		// Two authorities, of which crypto/tls knows one: VerifyConnection asks both.
		InsecureSkipVerify: true, //nolint:gosec // G402: VerifyConnection decides
		VerifyConnection:   server{roots: roots, host: base.Hostname(), trust: client.Trust}.verify,
	}
	client.http = newHTTP(c.URL, config, c.Timeout)
	anybody := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // G402: what comes this way is verified under the pinned root
	}
	client.open = newHTTP(c.URL, anybody, c.Timeout)
	return client, nil
}

// Apply forwards an M1.
func (c *Client) Apply(ctx context.Context, r deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error) {
	body, err := c.post(ctx, "/v1/apply", deviceapi.BodyType, r.Marshal())
	if err != nil {
		return deviceapi.ApplyResponse{}, err
	}
	answer, err := deviceapi.ParseApplyResponse(body)
	return answer, unreadable(err)
}

// Countersign forwards an M3.
func (c *Client) Countersign(ctx context.Context, r deviceapi.CountersignRequest) (deviceapi.CountersignResponse, error) {
	body, err := c.post(ctx, "/v1/countersign", deviceapi.BodyType, r.Marshal())
	if err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	answer, err := deviceapi.ParseCountersignResponse(body)
	return answer, unreadable(err)
}

// Outcome reports whether an approved act was performed. The first report wins.
func (c *Client) Outcome(ctx context.Context, r deviceapi.OutcomeRequest) error {
	_, err := c.post(ctx, "/v1/outcome", deviceapi.BodyType, r.Marshal())
	return err
}

// unreadable is an answer that is not one of this protocol: to the phone that
// is the same as none.
func unreadable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("answer of the appliance: %v: %w", err, protocol.CodeServerUnreachable)
}

func (c *Client) post(ctx context.Context, path, mediaType string, body []byte) ([]byte, error) {
	return c.call(ctx, request{http.MethodPost, path, mediaType, body})
}

// call makes a call, and once more if the server was not known and the trust, asked for
// again, may have its key of ca.
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
	code, _ := protocol.CodeOf(err)
	isReachable := code != protocol.CodeServerUnreachable && code != protocol.CodeTimeout
	if ctx.Err() == nil && c.judge(number, isReachable) {
		c.config.Log.Info("appliance changed", "reachable", isReachable, "url", c.config.URL)
		c.config.Changed()
	}
	return body, err
}

// judge notes how a call ended, unless a later one has ended before it; true if
// that is a change.
func (c *Client) judge(number uint64, isReachable bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number < c.last {
		return false
	}
	c.last = number
	return c.reachable.Swap(isReachable) != isReachable
}

// Reachable says whether the last call was answered.
func (c *Client) Reachable() bool { return c.reachable.Load() }

// Identity tells who the device is.
func (c *Client) Identity() Identity { return c.config.State.Identity() }

// Trust gives the pinned root and its keys, those adopted whose time has come.
func (c *Client) Trust() trust.State {
	t := c.config.State.Trust()
	return t.Adopt(now(t))
}

// now is the time by which dates of key certificates are judged, in Unix seconds.
func now(t trust.State) uint64 { return t.Time(uint64(time.Now().Unix())) }

// Close closes the connections that are not in use.
func (c *Client) Close() {
	c.http.closeIdle()
	c.open.closeIdle()
}
