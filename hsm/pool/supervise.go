package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"countersign/hsm"
)

// settled is how long a worker must have lived for its end to be the first of
// a new series.
const settled = 10 * time.Second

// supervise replaces a worker whenever it is lost, until the pool is closed. nil
// is one that is to be started first.
func (p *Pool) supervise(slot int, l *link) {
	delay := time.Duration(0)
	for {
		if l != nil {
			<-l.done
			p.remove(l)
			l.end()
			if errors.Is(l.failure(), ErrClosed) {
				return
			}
			p.cfg.Logger.Warn("worker lost", "pid", l.pid(), "status", l.proc.cmd.ProcessState.String(), "error", l.failure())
			if time.Since(l.started) > settled {
				delay = 0
			}
		}
		if l = p.replace(slot, &delay); l == nil {
			return
		}
	}
}

// replace starts a worker, again and again; nil when the pool was closed. Its PIN
// was accepted before, so that it asks no guard, which another program may have put
// up; but a refusal puts it up.
func (p *Pool) replace(slot int, delay *time.Duration) *link {
	for n := 0; ; n++ {
		l, open := p.pause(*delay)
		if !open {
			return nil
		}
		*delay = min(max(2**delay, 20*time.Millisecond), maxBackOff)
		var err error
		if l == nil {
			l, err = p.start(context.Background(), p.startLimit(slot, n), p.stopReason)
		}
		if err == nil {
			p.metrics.restarts.Inc()
			if !p.add(l) {
				return nil
			}
			return l
		}
		p.refusedLater(err)
		p.judge(err)
		if n == 0 {
			p.cfg.Logger.Error("cannot start worker", "error", err)
		}
	}
}

// pause waits for between half of d and d and until workers may be started. It
// returns a worker that was started meanwhile by Unlock; false when the pool was
// closed.
func (p *Pool) pause(d time.Duration) (*link, bool) {
	if d > 0 {
		d = d/2 + rand.N(d/2)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for waited := false; ; {
		changed := p.nextChange()
		if waited && p.stopReason() == nil {
			return nil, true
		}
		select {
		case <-timer.C:
			waited = true
		case <-changed:
		case l := <-p.spare:
			return l, true
		case <-p.closed:
			return nil, false
		}
	}
}

// nextChange is closed when live, stopped or the breaker changes.
func (p *Pool) nextChange() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *Pool) stopReason() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

// stop makes cause the reason why no worker is started. Those that run stay;
// Close ends them.
func (p *Pool) stop(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.stopped, ErrClosed) {
		return
	}
	if p.stopped = cause; errors.Is(cause, ErrClosed) {
		close(p.closed)
		p.die()
	}
	p.signalLocked()
}

// resume lets workers be started again.
func (p *Pool) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !errors.Is(p.stopped, ErrClosed) {
		p.stopped = nil
	}
	p.signalLocked()
}

// refusedLater puts the guard up over a PIN that was accepted before and is no longer.
func (p *Pool) refusedLater(err error) {
	if !errors.Is(err, hsm.ErrPIN) || errors.Is(p.stopReason(), ErrRefusedBefore) {
		return
	}
	if failed := p.cfg.Guard.raise(); failed != nil {
		p.cfg.Logger.Error("a refused PIN could not be remembered: do not start again before it is right", "error", failed)
	}
}

func (p *Pool) stopIfRefused(err error) {
	if errors.Is(err, hsm.ErrPIN) {
		p.refusals.Add(1)
		p.cfg.Logger.Error("PIN refused, no worker will be started before it is unlocked", "error", err)
		p.stop(err)
	}
}

// add lets a worker take calls; false when the pool was closed meanwhile.
func (p *Pool) add(l *link) bool {
	p.mu.Lock()
	if errors.Is(p.stopped, ErrClosed) {
		p.mu.Unlock()
		discard(l)
		return false
	}
	p.known.Clear()
	p.changeLocked(append(slices.Clone(*p.live.Load()), l))
	p.mu.Unlock()
	p.judge(nil)
	go p.watch(l)
	return true
}

func (p *Pool) remove(l *link) {
	p.mu.Lock()
	p.changeLocked(slices.DeleteFunc(slices.Clone(*p.live.Load()), func(o *link) bool { return o == l }))
	p.mu.Unlock()
	p.judge(nil)
}

func (p *Pool) changeLocked(live []*link) {
	p.live.Store(&live)
	p.metrics.alive.Set(float64(len(live)))
	p.signalLocked()
}

// signal wakes who waits for a change.
func (p *Pool) signal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signalLocked()
}

func (p *Pool) signalLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}
