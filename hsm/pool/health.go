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
	errNoWorker = fmt.Errorf("no worker is there: %w", hsm.ErrUnavailable)
	errHung     = fmt.Errorf("no worker answers: %w", hsm.ErrUnavailable)
)

// health is a circuit breaker. While no worker can be expected to answer it is open, and
// calls are refused at once.
type health struct {
	mu    sync.Mutex // guards the fields below
	cause error      // why it is open; nil if closed
	since time.Time  // when the last worker was lost or hung; zero while one is well
}

// down returns why calls are refused at once, nil if they are not.
func (h *health) down() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cause
}

// silenceLimit is how long a worker may be silent before another is asked, and how
// long all may be lost or hang before calls are refused at once. A crash of all of them,
// or a short stall of the token, is over by then.
func (p *Pool) silenceLimit() time.Duration { return p.cfg.Timeout / 4 }

// updateHealth looks at the workers after an event. failed is why a worker could not be
// started, or nil.
func (p *Pool) updateHealth(failed error) {
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
			time.AfterFunc(p.silenceLimit(), func() { p.updateHealth(nil) })
		}
		if failed != nil {
			cause = failed
		}
		if h.cause != nil || failed != nil || time.Since(h.since) >= p.silenceLimit() {
			h.cause = cause
		}
	}
	p.announce(before, h.cause)
}

// announce logs once when the state changes.
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

// diagnose reports whether a worker can be expected to answer, and if not, why.
func (p *Pool) diagnose() (cause error, well bool) {
	live := *p.live.Load()
	for _, c := range live {
		if c.well() {
			return nil, true
		}
	}
	if stopped := p.stopReason(); stopped != nil && len(live) == 0 {
		return stopped, false
	}
	if len(live) == 0 {
		return errNoWorker, false
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
