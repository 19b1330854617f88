// Package pool implements [hsm.Token] over several hsm-worker processes. A PKCS#11
// call cannot be cancelled, and a module can hang, crash or lose its token for good. A
// process can be killed and started again while the others serve.
//
// A call goes to the worker with the least to do (retry.go), over its [conn]. The pool
// verifies the answer and asks another worker if it is wrong, lost or late. Canaries
// (canary.go) use every key of every worker every few seconds. While no worker can be
// expected to answer, calls are refused at once (health.go). Lost workers are replaced
// (supervise.go).
package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/hsm"
	"countersign/hsm/wire"
)

const (
	defaultWorkers  = 2
	defaultSessions = 4
	defaultTimeout  = 2 * time.Second
	startTimeout    = 15 * time.Second // from the start of a process until it has proven its keys
	leastStart      = 3 * time.Second  // the shortest limit for a replacement, however fast the first start was
	grace           = 250 * time.Millisecond
	maxBackOff      = time.Second
)

var (
	// ErrClosed: the pool was closed. It wraps [hsm.ErrUnavailable].
	ErrClosed = fmt.Errorf("worker pool closed: %w", hsm.ErrUnavailable)
	// ErrUnlocked: the token accepted a PIN before; there is nothing to unlock.
	ErrUnlocked = errors.New("HSM is unlocked already")
)

// Config says how to reach a token. TokenLabel, TokenSerial or both select it.
type Config struct {
	Binary      string // path of hsm-worker
	Module      string // path of the PKCS#11 module
	TokenLabel  string
	TokenSerial string
	InitArgs    string      // for C_Initialize, or empty
	Require     []hsm.Usage // Open fails if the module cannot have keys of these usages
	// HostCheck makes new wrap keys HMAC keys, under which the workers check passwords in their memory. Without it they
	// refuse to use such a key.
	HostCheck bool
	// PIN is erased by Open. Workers that are started later get it from an anonymous
	// file outside this process's memory. Without one the pool starts locked: see
	// [Pool.Unlock].
	PIN hsm.PIN
	// Guard is the file that remembers, across processes, that the token refused
	// a PIN. With "" only this process remembers it.
	Guard Guard
	// Unverified returns signatures without verifying them. It is for measuring what
	// verifying costs, and for nothing else.
	Unverified bool
	// Patient opens a pool whose token is absent or refuses its PIN, and keeps trying.
	// It is for one of several tokens, of which another can serve.
	Patient  bool
	Workers  int // processes, default 2
	Sessions int // PKCS#11 sessions of each, default 4; one more is for canaries
	// Timeout is how long a call may take, default 2 s. Making and listing keys may
	// take ten times as long. A worker that is silent for a quarter of it gets no more
	// calls while another one answers. It is killed if it still has not answered 250 ms
	// after the end of it.
	Timeout    time.Duration
	Logger     hclog.Logger          // default none
	Registerer prometheus.Registerer // nil for no metrics
}

// Pool implements [hsm.Token] over worker processes, which inherit the
// environment. It owns the processes and their sockets.
type Pool struct {
	cfg     Config
	metrics *metrics
	health  health
	keys    keyCache
	known   knownPublics
	forks   chan fork
	started chan *conn              // a worker that Unlock started, for a supervisor
	live    atomic.Pointer[[]*conn] // replaced under mu, read without
	closed  chan struct{}
	running sync.WaitGroup             // supervisors
	ended   sync.Once                  // closes forksEnd
	opened  atomic.Pointer[wire.Hello] // of the last worker that opened the token
	worked  sync.Map                   // use → nil, what worked since the last start of a worker

	shows     atomic.Bool   // each worker saw a key that another one had made
	refusals  atomic.Int64  // PINs that the token refused
	returns   atomic.Uint64 // see Returns
	startSlot chan struct{} // allows one start, hence one login, at a time
	forksEnd  chan struct{} // closed when no more processes are started
	life      context.Context
	die       context.CancelFunc // ends life

	unlocking sync.Mutex // one Unlock at a time; guards begun
	begun     bool       // each worker has a supervisor

	changing sync.Mutex // one change of the token at a time, so that labels stay unique

	mu      sync.Mutex    // guards the fields below
	changed chan struct{} // closed and replaced when live, stopped or health changes
	stopped error         // why no worker is started
	pin     *pinFile      // nil before there was a PIN
	longest time.Duration // of the starts that succeeded
}

// State describes a pool for /readyz.
type State struct {
	Ready bool  // calls go to a worker
	Alive int   // worker processes with an open token
	Want  int   // as configured
	Err   error // why it is not ready: wraps [hsm.ErrPIN], [hsm.ErrLocked], [hsm.ErrUnavailable] or is [ErrClosed]
}

// Process describes one worker for /v1/admin/hsm.
type Process struct {
	PID     int
	Started time.Time
	Well    bool          // it can be expected to answer
	Calls   int           // in flight: in the token or waiting
	Most    int           // calls in flight above which more are refused as busy
	Done    uint64        // calls answered
	Wrong   int           // wrong answers in a row
	Proven  time.Time     // when a signature or a canary was last right; zero for never
	Took    time.Duration // of one call inside the token, smoothed
}

// Open starts one worker and, when that one has logged in and proven its keys,
// the others: a refused PIN ([hsm.ErrPIN]) was tried exactly once. It returns
// [hsm.ErrUnavailable] if the module or token is absent. ctx bounds the start
// only. Without a PIN the pool waits for [Pool.Unlock], and every call returns
// [hsm.ErrLocked].
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	cfg.defaults()
	p := &Pool{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), forks: make(chan fork), started: make(chan *conn, 1),
		startSlot: make(chan struct{}, 1), forksEnd: make(chan struct{}),
		closed: make(chan struct{}), changed: make(chan struct{}), stopped: cfg.lockedBy(),
	}
	if cfg.HostCheck {
		p.metrics.hostCheck.Set(1)
	}
	p.life, p.die = context.WithCancel(context.Background())
	p.cfg.PIN = nil
	p.live.Store(&[]*conn{})
	p.health.cause = p.stopped
	go p.forkLoop()
	if len(cfg.PIN) == 0 {
		return p, nil
	}
	p.unlocking.Lock()
	err := p.unlock(ctx, cfg.PIN)
	p.unlocking.Unlock()
	if err != nil && !(cfg.Patient && (errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrPIN))) {
		p.Close()
		return nil, fmt.Errorf("opening HSM: %w", err)
	}
	return p, nil
}

func (c *Config) defaults() {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Workers <= 0 {
		c.Workers = defaultWorkers
	}
	if c.Sessions <= 0 {
		c.Sessions = defaultSessions
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
}

// lockedBy returns why a new pool starts no worker before it is unlocked.
func (c *Config) lockedBy() error {
	if when, refused := c.Guard.Refused(); refused {
		return fmt.Errorf("%w since %s", ErrRefusedBefore, when.UTC().Format(time.RFC3339))
	}
	return hsm.ErrLocked
}

// Close ends the workers and erases the PIN. A second Close waits for the first.
// Calls under way return [hsm.ErrUnavailable].
func (p *Pool) Close() {
	p.stop(ErrClosed)
	p.unlocking.Lock() // an Unlock under way ends now
	defer p.unlocking.Unlock()
	for _, c := range *p.live.Load() {
		c.fail(ErrClosed)
	}
	p.running.Wait()
	select {
	case c := <-p.started:
		discard(c)
	default:
	}
	p.ended.Do(func() { close(p.forksEnd) })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pin.close()
	p.pin = nil
}

// Ready reports whether calls go to the workers.
func (p *Pool) Ready() bool { return p.State().Ready }

// Returns counts how often the pool got its first worker: at the start, and each time after it had
// lost all of them.
func (p *Pool) Returns() uint64 { return p.returns.Load() }

// Ways describes how the module is used, one sentence for each choice; none before a worker opened
// the token.
func (p *Pool) Ways() []string {
	if hello := p.opened.Load(); hello != nil {
		return hello.Ways
	}
	return nil
}

// KEMs implements [hsm.Token].
func (p *Pool) KEMs() []hsm.KEM {
	if hello := p.opened.Load(); hello != nil {
		return hello.KEMs
	}
	return nil
}

// InFlight returns the number of calls that were not answered yet.
func (p *Pool) InFlight() (n int) {
	for _, c := range *p.live.Load() {
		n += int(c.inFlight.Load())
	}
	return n
}

// State returns the state of the pool.
func (p *Pool) State() State {
	s := State{Alive: len(*p.live.Load()), Want: p.cfg.Workers, Err: p.stopReason()}
	down := p.health.down()
	s.Ready = down == nil && !errors.Is(s.Err, ErrClosed)
	if s.Err == nil {
		s.Err = down
	}
	return s
}

// Processes returns the workers that are running, oldest first.
func (p *Pool) Processes() []Process {
	live := *p.live.Load()
	all := make([]Process, 0, len(live))
	for _, c := range live {
		all = append(all, c.process())
	}
	return all
}

func (c *conn) process() Process {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	return Process{
		PID: c.pid(), Started: c.started, Well: c.well(), Calls: int(c.inFlight.Load()), Most: c.pace.most(false),
		Done: c.history.calls.Load(), Wrong: c.history.wrong, Proven: c.history.proven, Took: time.Duration(c.pace.took.Load()),
	}
}
