// Package worker is the parent's side of the HSM: it implements the contract
// of package hsm over several hsm-worker processes. A PKCS#11 call cannot be
// cancelled and a module can hang, crash or lose its token for good; a process
// can be killed and started again, and the others go on meanwhile.
//
// A call goes to the worker with the least to do (route.go), over its [link];
// what comes back is verified (verify.go) and asked for again elsewhere when it
// is wrong, lost or late. Canaries (canary.go) use every key of every worker
// every few seconds. While no worker is well the breaker (health.go) refuses
// calls at once. Lost workers are replaced (supervise.go).
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
)

const (
	defaultWorkers  = 2
	defaultSessions = 4
	defaultTimeout  = 2 * time.Second
	startTimeout    = 15 * time.Second // from start of a process until it has proven its keys
	leastStart      = 3 * time.Second  // for one that replaces another, however fast the first was
	grace           = 250 * time.Millisecond
	maxBackOff      = time.Second
)

var (
	// ErrClosed: the pool was closed. It wraps [hsm.ErrUnavailable].
	ErrClosed = fmt.Errorf("worker pool closed: %w", hsm.ErrUnavailable)
	// ErrUnlocked: the PIN was given and accepted before; there is nothing to unlock.
	ErrUnlocked = errors.New("HSM is unlocked already")
)

// Config says how to reach a token. TokenLabel, TokenSerial or both select it.
type Config struct {
	Binary      string // path of hsm-worker
	Module      string // path of the PKCS#11 module
	TokenLabel  string
	TokenSerial string
	InitArgs    string      // for C_Initialize, or empty
	Require     []hsm.Usage // what serving depends on: Open fails where the module cannot
	// PIN is taken over and erased. Workers that are started later get it from
	// an anonymous file outside this process's memory. An empty one is a locked
	// start: see [Pool.Unlock].
	PIN hsm.PIN
	// Guard is the file that remembers, across processes, that the token refused
	// a PIN. "" remembers it in this process only.
	Guard Guard
	// Unverified hands signatures on as they come: for measuring what verifying
	// costs, and for nothing else.
	Unverified bool
	// Patient opens a pool whose token is not there, and goes on trying, or refuses
	// its PIN: for one of several, of which another can serve.
	Patient  bool
	Workers  int // processes, default 2
	Sessions int // PKCS#11 sessions of each, default 4; one more is for canaries
	// Timeout is what a call may take, default 2 s; generating and listing
	// keys may take ten times that. A worker that is silent for a quarter of it
	// is asked nothing more while another one answers, and one that has not
	// answered a quarter of a second after it is killed.
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
	book    book
	forks   chan fork
	spare   chan *link              // a worker that Unlock started, for a supervisor
	live    atomic.Pointer[[]*link] // replaced under mu, read without
	closed  chan struct{}
	running sync.WaitGroup // supervisors
	ended   sync.Once      // closes over
	known   sync.Map       // use → nil, what worked since the last start of a worker

	refusals  atomic.Int64  // PINs that the token refused
	turnstile chan struct{} // holds one start, hence one login, at a time
	over      chan struct{} // closed when nothing is forked any more
	life      context.Context
	die       context.CancelFunc // ends life

	unlocking sync.Mutex // one Unlock at a time; guards begun
	begun     bool       // there is a supervisor for each worker

	keeping sync.Mutex // one change of what is on the token at a time, so that labels stay unique

	mu      sync.Mutex    // guards what follows
	changed chan struct{} // closed and replaced when live, stopped or the breaker changes
	stopped error         // why no worker is started
	vault   *vault        // nil before there was a PIN
	longest time.Duration // that a start took which ended well
}

// State is what /readyz asks.
type State struct {
	Ready bool  // a worker is there to answer
	Alive int   // worker processes with an open token
	Want  int   // as configured
	Err   error // why it is not ready: wraps [hsm.ErrPIN], [hsm.ErrLocked], [hsm.ErrUnavailable] or is [ErrClosed]
}

// Open starts one worker and, when that one has logged in and proven its keys,
// the others, so that a refused PIN ([hsm.ErrPIN]) was tried exactly once. A
// module or token that is not there is [hsm.ErrUnavailable]. ctx bounds the start
// only. Without a PIN the pool waits for [Pool.Unlock], and every call is
// [hsm.ErrLocked].
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	cfg.defaults()
	p := &Pool{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), forks: make(chan fork), spare: make(chan *link, 1),
		turnstile: make(chan struct{}, 1), over: make(chan struct{}),
		closed: make(chan struct{}), changed: make(chan struct{}), stopped: cfg.waitsFor(),
	}
	p.life, p.die = context.WithCancel(context.Background())
	p.cfg.PIN = nil
	p.live.Store(&[]*link{})
	p.health.cause = p.stopped
	go p.fork()
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

// waitsFor is why a pool that was just made starts no worker.
func (c *Config) waitsFor() error {
	if when, refused := c.Guard.Refused(); refused {
		return fmt.Errorf("%w since %s", ErrRefusedBefore, when.UTC().Format(time.RFC3339))
	}
	return hsm.ErrLocked
}

// Close ends the workers and erases the PIN; a second Close waits for the
// first. Calls under way fail with
// [hsm.ErrUnavailable].
func (p *Pool) Close() {
	p.stop(ErrClosed)
	p.unlocking.Lock() // one under way ends now
	defer p.unlocking.Unlock()
	for _, l := range *p.live.Load() {
		l.fail(ErrClosed)
	}
	p.running.Wait()
	select {
	case l := <-p.spare:
		discard(l)
	default:
	}
	p.ended.Do(func() { close(p.over) })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vault.close()
	p.vault = nil
}

// Ready tells whether calls are let through to the workers.
func (p *Pool) Ready() bool { return p.State().Ready }

// InFlight is how many calls were not answered yet.
func (p *Pool) InFlight() (n int) {
	for _, l := range *p.live.Load() {
		n += int(l.load.Load())
	}
	return n
}

// State reports how many workers are there.
func (p *Pool) State() State {
	s := State{Alive: len(*p.live.Load()), Want: p.cfg.Workers, Err: p.stopReason()}
	down := p.health.down()
	s.Ready = down == nil && !errors.Is(s.Err, ErrClosed)
	if s.Err == nil {
		s.Err = down
	}
	return s
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
