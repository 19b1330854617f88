// Package worker is the parent's side of the HSM: it implements the contract
// of package hsm over several hsm-worker processes. A PKCS#11 call cannot be
// cancelled and a module can hang, crash or lose its token for good; a process
// can be killed and started again, and the others go on meanwhile.
package worker

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
	startTimeout    = 15 * time.Second // from start of a process to its hello
	grace           = 250 * time.Millisecond
	maxBackOff      = time.Second
)

// ErrClosed: the pool was closed. It wraps [hsm.ErrUnavailable].
var ErrClosed = fmt.Errorf("worker pool closed: %w", hsm.ErrUnavailable)

// Config says how to reach a token. TokenLabel, TokenSerial or both select it.
type Config struct {
	Binary      string // path of hsm-worker
	Module      string // path of the PKCS#11 module
	TokenLabel  string
	TokenSerial string
	InitArgs    string      // for C_Initialize, or empty
	Require     []hsm.Usage // what serving depends on: Open fails where the module cannot
	PIN         wire.PIN    // taken over: workers started later need it; erased by Close
	Workers     int         // processes, default 2
	Sessions    int         // PKCS#11 sessions of each, default 4
	// Timeout is what a call may take, default 2 s; generating and listing
	// keys may take ten times that. A worker that has not answered a quarter
	// of a second later is killed.
	Timeout    time.Duration
	Logger     hclog.Logger          // default none
	Registerer prometheus.Registerer // nil for no metrics
}

// Pool implements [hsm.Token] over worker processes, which inherit the
// environment. It owns the processes and their sockets.
type Pool struct {
	cfg     Config
	metrics *metrics
	forks   chan fork
	live    atomic.Pointer[[]*link] // replaced under mu, read without
	closed  chan struct{}
	running sync.WaitGroup // supervisors
	ended   sync.Once      // closes forks
	known   sync.Map       // use → nil, what worked since the last start of a worker

	starting sync.Mutex // one start, hence one login, at a time
	keeping  sync.Mutex // one change of what is on the token at a time, so that labels stay unique

	mu      sync.Mutex    // guards what follows
	changed chan struct{} // closed and replaced when live or stopped changes
	stopped error         // why no worker is started any more
}

// State is what /readyz asks.
type State struct {
	Ready bool  // a worker is there to answer
	Alive int   // worker processes with an open token
	Want  int   // as configured
	Err   error // why no worker will be started again: wraps [hsm.ErrPIN] or is [ErrClosed]
}

// Open starts one worker and, when that one has logged in, the others, so that
// a refused PIN ([hsm.ErrPIN]) was tried exactly once. A module or token that
// is not there is [hsm.ErrUnavailable]. ctx bounds the start only.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	cfg.defaults()
	p := &Pool{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), forks: make(chan fork),
		closed: make(chan struct{}), changed: make(chan struct{}),
	}
	p.live.Store(&[]*link{})
	go p.fork()
	for range cfg.Workers {
		l, err := p.start(ctx)
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("opening HSM: %w", err)
		}
		p.add(l)
		p.running.Go(func() { p.supervise(l) })
	}
	return p, nil
}

// Close ends the workers and erases the PIN; a second Close waits for the
// first. Calls under way fail with
// [hsm.ErrUnavailable].
func (p *Pool) Close() {
	p.stop(ErrClosed)
	for _, l := range *p.live.Load() {
		l.fail(ErrClosed)
	}
	p.running.Wait()
	p.ended.Do(func() { close(p.forks) })
	p.cfg.PIN.Zero()
}

// State reports how many workers are there.
func (p *Pool) State() State {
	alive := len(*p.live.Load())
	p.mu.Lock()
	defer p.mu.Unlock()
	return State{Ready: alive > 0 && !errors.Is(p.stopped, ErrClosed), Alive: alive, Want: p.cfg.Workers, Err: p.stopped}
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
