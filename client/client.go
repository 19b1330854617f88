// Package client implements the phone's part of OA1: it enrols at an appliance, and then authorizes
// with no network but the near-field link to a device. protocol/PROTOCOL.md specifies the rules.
//
// The state is one directory, which survives a crash at any point. The client never reuses a
// counter, keeps a countersignature that may have left and repeats it byte for byte, and stores
// every message before it sends it.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// Config configures [Open].
type Config struct {
	// Dir is the state directory. Open creates it with mode 0700.
	Dir string
	// ReadOnly opens the state without the lock, while another process may change it.
	ReadOnly bool
	// Keys stores the signing key and the UV key; nil: files in Dir.
	Keys KeyStore
	// Passwords asks for the password; nil: the user can only refuse challenges that need one.
	Passwords PasswordSource
	// Verifier verifies the user before the UV key signs; nil: the user can only refuse challenges
	// that need this key.
	Verifier UserVerifier
	// Now returns the time with its monotonic part; nil: time.Now.
	Now func() time.Time
	// AnswerTimeout bounds the wait for each answer on the link; 0: 30 s.
	AnswerTimeout time.Duration

	before durable.Before
}

const defaultAnswerTimeout = 30 * time.Second

// Client is an open state directory. It is not safe for concurrent use. Until Close, other processes
// can open the directory read-only.
type Client struct {
	dir       *durable.Dir
	keys      KeyStore
	passwords PasswordSource
	verifier  UserVerifier
	now       func() time.Time
	timeout   time.Duration
	state     state
	// started is the time when the first byte of the session's M1 left. The monotonic part does not
	// survive the process; a restored session has the wall clock only.
	started time.Time
}

// Open reads and verifies the state. It first settles an interrupted session: it drops a request
// without a countersignature, and turns an expired countersignature into a receipt, usually with an
// unknown outcome. Errors are [ErrLocked], [ErrState], or from the file system.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	dir := durable.View(cfg.Dir)
	if !cfg.ReadOnly {
		var err error
		if dir, err = durable.Open(cfg.Dir, cfg.before); err != nil {
			return nil, fmt.Errorf("opening the client's state: %w", err)
		}
	}
	c := &Client{
		dir: dir, keys: cfg.Keys, passwords: cfg.Passwords, verifier: cfg.Verifier, now: cfg.Now, timeout: cfg.AnswerTimeout,
	}
	if c.keys == nil {
		c.keys = fileKeys{dir}
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.timeout == 0 {
		c.timeout = defaultAnswerTimeout
	}
	if err := c.load(ctx, cfg.ReadOnly); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the client's state: %w", err), dir.Close())
	}
	return c, nil
}

// Close releases the lock of the directory.
func (c *Client) Close() error { return c.dir.Close() }

func (c *Client) load(ctx context.Context, readOnly bool) (err error) {
	if c.state, err = readState(c.dir.Read); err != nil {
		return err
	}
	if c.state.Session != nil {
		c.started = c.state.Session.Started
	}
	if readOnly {
		return nil
	}
	if err := c.loadKeys(ctx); err != nil {
		return err
	}
	return c.tidy()
}

// loadKeys verifies that the keys exist.
func (c *Client) loadKeys(ctx context.Context) error {
	e := c.state.Enrolment
	if e == nil {
		return nil
	}
	if _, err := c.keys.Load(ctx, e.key()); err != nil {
		return err
	}
	if uv := e.uvKey(); uv != nil {
		if _, err := c.keys.Load(ctx, *uv); err != nil {
			return fmt.Errorf("UV key: %w", err)
		}
	}
	return nil
}

// tidy ends an interrupted session that cannot continue.
func (c *Client) tidy() error {
	s := c.state.Session
	switch {
	case s == nil:
		return nil
	case s.M3 == nil:
		return c.endSession()
	}
	e, err := s.open()
	if err != nil {
		return err
	}
	if !e.counts() {
		return c.endSession()
	}
	if r, err := c.receipt(e.p1.Serial); err == nil && r.Known {
		return c.endSession()
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.remaining(e) <= 0 {
		return c.giveUp(e)
	}
	return nil
}

// save replaces the state on the disk. If that fails it reverts change in memory, except for the
// counter, which the disk may already have.
func (c *Client) save(change func(*state)) error {
	next := c.state
	change(&next)
	b, err := next.marshal()
	if err != nil {
		return err
	}
	c.state.Counter = next.Counter
	if err := c.dir.Write(stateFile, b); err != nil {
		return fmt.Errorf("saving the state: %w", err)
	}
	c.state = next
	return nil
}

// endSession erases the session with its secrets, from memory even if the disk fails.
func (c *Client) endSession() error {
	if c.state.Session != nil {
		clear(c.state.Session.ES)
	}
	c.state.Session = nil
	return c.save(func(*state) {})
}

// trustNow returns the trust state by the clock of now, and the time in Unix seconds by which dates are judged.
func (c *Client) trustNow() (trust.State, uint64) { return c.state.Trust.At(unix(c.now())) }

// shows notes what the appliance has shown. The next save stores it.
func (c *Client) shows(s trust.Shown) {
	pinned, _ := c.trustNow()
	pinned = pinned.Show(s)
	c.state.Trust = &pinned
}

func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// reserved are the names of the protocol's own services.
var reserved = map[protocol.Service]string{
	protocol.ServiceDryRun: "dry run", protocol.ServiceStatus: "outcome of an authorization",
	protocol.ServiceCoApproval: "approval for another client",
}

// Name returns the user's own name of a service, or "service 100".
func (c *Client) Name(service protocol.Service) string {
	for _, names := range []map[protocol.Service]string{reserved, c.state.Names} {
		if name, ok := names[service]; ok {
			return name
		}
	}
	return "service " + service.String()
}

// ServiceNamed returns the service with this name.
func (c *Client) ServiceNamed(name string) (service protocol.Service, ok bool) {
	for s, n := range c.state.Names {
		if n == name {
			return s, true
		}
	}
	return 0, false
}

// SetName names a service, with at most 24 bytes, and removes the name from any other service. It
// returns CodeFormat for a name that violates the rules for texts.
func (c *Client) SetName(service protocol.Service, name string) error {
	if err := message.CheckText(name, message.MaxNameBytes); err != nil {
		return fmt.Errorf("name of service %v: %w", service, err)
	}
	if c.state.Names[service] == name {
		return nil
	}
	return c.save(func(s *state) {
		names := map[protocol.Service]string{service: name}
		for other, n := range s.Names {
			if other != service && n != name {
				names[other] = n
			}
		}
		s.Names = names
	})
}

// Status describes a client.
type Status struct {
	Client     protocol.ClientID
	URL        string
	EnrolledAt time.Time
	Root       protocol.RootID
	RootNumber uint64
	KEMEpoch   uint64
	KEMUntil   time.Time
	Counter    uint32
	Floors     []protocol.Floor
	Factors    protocol.Factors // of the enrolment
	Pending    *Receipt         // countersigned, without a final answer
}

// Status returns the status of the enrolment, or [ErrNotEnrolled].
func (c *Client) Status() (Status, error) {
	e := c.state.Enrolment
	if e == nil {
		return Status{}, ErrNotEnrolled
	}
	pinned, _ := c.trustNow()
	s := Status{
		Client: e.client(), URL: e.URL, EnrolledAt: e.At, Floors: e.Floors, Counter: c.state.Counter,
		Root: pinned.Root.RootID(), RootNumber: pinned.RootNumber, Factors: e.factors(),
	}
	if kem, ok := pinned.KEM(); ok {
		s.KEMEpoch, s.KEMUntil = kem.Epoch, time.Unix(int64(min(kem.NotAfter, maxUnix)), 0).UTC()
	}
	if r, ok := c.Pending(); ok {
		s.Pending = &r
	}
	return s, nil
}

// maxUnix is the last second of the year 9999. Later times cannot be formatted.
const maxUnix = 253402300799

func randomTail() (tail [8]byte) {
	_, _ = rand.Read(tail[:]) // never fails, see crypto/rand
	return tail
}
