package pool

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign/hsm"
)

// Errors of a pool that has no worker to ask. Each wraps [hsm.ErrUnavailable].
var (
	errNobody = fmt.Errorf("no worker is there: %w", hsm.ErrUnavailable)
	errHung   = fmt.Errorf("no worker answers: %w", hsm.ErrUnavailable)
)

// health is the breaker: whether calls are let through to the workers. It is
// open, which means they are refused at once, while no worker can be expected
// to answer.
type health struct {
	mu    sync.Mutex // guards what follows
	cause error      // why it is open; nil is closed
	since time.Time  // when the last worker was gone or hung; zero while one is well
}

// down is why calls are refused at once; nil when they are not.
func (h *health) down() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cause
}

// patience is how long a worker may be silent before another is asked, and how
// long all may be gone or hang before calls are refused at once: a crash of all,
// or a short stall of the token, is over by then.
func (p *Pool) patience() time.Duration { return p.cfg.Timeout / 4 }

// judge looks at the workers again, after something happened to them. failed is
// why one could not be started, or nil.
func (p *Pool) judge(failed error) {
	h := &p.health
	h.mu.Lock()
	defer h.mu.Unlock()
	cause, well := p.diagnose()
	before := h.cause
	switch {
	case well:
		h.since, h.cause = time.Time{}, nil
	case p.isClosed():
		h.cause = ErrClosed
	default:
		if h.since.IsZero() {
			h.since = time.Now()
			time.AfterFunc(p.patience(), func() { p.judge(nil) })
		}
		if failed != nil {
			cause = failed
		}
		if h.cause != nil || failed != nil || time.Since(h.since) >= p.patience() {
			h.cause = cause
		}
	}
	p.announce(before, h.cause)
}

// announce raises one alarm for each change of state.
func (p *Pool) announce(before, after error) {
	if (before == nil) == (after == nil) || errors.Is(after, ErrClosed) {
		return
	}
	p.signal()
	if after != nil {
		p.metrics.available.Set(0)
		p.cfg.Logger.Error("HSM unavailable, calls are refused", "error", after)
		return
	}
	p.metrics.available.Set(1)
	p.cfg.Logger.Info("HSM available")
}

// diagnose tells whether a worker can be expected to answer, and if not why.
func (p *Pool) diagnose() (cause error, well bool) {
	live := *p.live.Load()
	for _, l := range live {
		if l.well() {
			return nil, true
		}
	}
	if stopped := p.stopReason(); stopped != nil && len(live) == 0 {
		return stopped, false
	}
	if len(live) == 0 {
		return errNobody, false
	}
	return errHung, false
}

func (p *Pool) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}
