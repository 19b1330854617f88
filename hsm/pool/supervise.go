package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"countersign/hsm"
)

// stableAfter is how long a worker must have lived for its end to start a new series of
// back-off delays.
const stableAfter = 10 * time.Second

// Unlock gives a PIN to a pool that has none or whose PIN was refused, lifts the
// guard, and tries the PIN once. It returns [hsm.ErrPIN] if the token refuses it, which
// puts the guard up again, or if another PIN was refused while this one waited; then it
// is not tried. It returns [hsm.ErrUnavailable] if the token cannot be reached; a patient
// pool keeps the PIN all the same. A pool that runs returns [ErrUnlocked]. Unlock erases
// the PIN.
func (p *Pool) Unlock(ctx context.Context, pin hsm.PIN) error {
	defer pin.Zero()
	refused := p.refusals.Load()
	p.unlocking.Lock()
	defer p.unlocking.Unlock()
	switch stopped := p.stopReason(); {
	case stopped == nil:
		return ErrUnlocked
	case errors.Is(stopped, ErrClosed):
		return stopped
	case len(pin) == 0:
		return fmt.Errorf("no PIN: %w", hsm.ErrInput)
	case refused != p.refusals.Load():
		return fmt.Errorf("another PIN was refused meanwhile, this one was not tried: %w", hsm.ErrPIN)
	}
	if err := p.cfg.Guard.Lift(); err != nil { // an administrator has decided to try
		return err
	}
	return p.unlock(ctx, pin)
}

// unlock starts the first worker with a PIN, unless the guard is up. Callers hold unlocking.
func (p *Pool) unlock(ctx context.Context, pin hsm.PIN) error {
	if err := p.storePIN(pin); err != nil {
		return err
	}
	var first *conn
	err := p.cfg.Guard.Try(func() (err error) {
		first, err = p.start(ctx, startTimeout, func() error { return nil })
		return err
	})
	if err != nil && !(p.cfg.Patient && errors.Is(err, hsm.ErrUnavailable)) {
		if errors.Is(err, ErrRefusedBefore) { // start has logged every other refusal
			p.stopIfRefused(err)
		}
		return err
	}
	if err != nil {
		p.cfg.Logger.Error("token is not there, still trying", "error", err)
		p.updateHealth(err)
	}
	p.resume()
	p.supervise(ctx, first)
	return err
}

// storePIN replaces the PIN for later starts.
func (p *Pool) storePIN(pin hsm.PIN) error {
	fresh, err := newPINFile(pin)
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pin.close()
	p.pin = fresh
	return nil
}

// supervise gives a worker, or nil, to a supervisor. The first time it starts all the
// other workers and their supervisors. Callers hold unlocking, as does Close before it
// waits for the supervisors.
func (p *Pool) supervise(ctx context.Context, first *conn) {
	if p.isClosed() {
		discard(first)
		return
	}
	if p.begun {
		if first != nil {
			p.started <- first
			p.waitReady(ctx)
		}
		return
	}
	p.begun = true
	workers := make([]*conn, p.cfg.Workers) // the supervisor starts those that are nil
	workers[0] = first
	for i := 1; i < len(workers) && first != nil; i++ {
		c, err := p.start(ctx, startTimeout, p.stopReason)
		if err != nil {
			p.cfg.Logger.Error("cannot start worker", "error", err)
			break
		}
		workers[i] = c
	}
	for slot, c := range workers {
		if c != nil && !p.add(c) {
			c = nil
		}
		p.running.Go(func() { p.supervisor(slot, c) })
	}
}

// waitReady waits until the pool is ready, for the caller of Unlock.
func (p *Pool) waitReady(ctx context.Context) {
	for {
		changed := p.nextChange()
		if p.Ready() {
			return
		}
		select {
		case <-changed:
		case <-p.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

func discard(c *conn) {
	if c != nil {
		c.fail(ErrClosed)
		c.end()
	}
}

// supervisor replaces a worker whenever it is lost, until the pool is closed. If c is nil
// it starts the first one.
func (p *Pool) supervisor(slot int, c *conn) {
	delay := time.Duration(0)
	for {
		if c != nil {
			<-c.done
			p.remove(c)
			c.end()
			if errors.Is(c.failure(), ErrClosed) {
				return
			}
			p.cfg.Logger.Warn("worker lost", "pid", c.pid(), "status", c.proc.cmd.ProcessState.String(), "error", c.failure())
			if time.Since(c.started) > stableAfter {
				delay = 0
			}
		}
		if c = p.startAgain(slot, &delay); c == nil {
			return
		}
	}
}

// startAgain starts a worker, trying until it succeeds; it returns nil if the pool was
// closed. The token accepted the PIN before, so the guard, which another program may have
// put up, is not asked; but a refusal puts it up.
func (p *Pool) startAgain(slot int, delay *time.Duration) *conn {
	for n := 0; ; n++ {
		c, open := p.pause(*delay)
		if !open {
			return nil
		}
		*delay = min(max(2**delay, 20*time.Millisecond), maxBackOff)
		var err error
		if c == nil {
			c, err = p.start(context.Background(), p.startLimit(slot, n), p.stopReason)
		}
		if err == nil {
			p.metrics.restarts.Inc()
			if !p.add(c) {
				return nil
			}
			return c
		}
		p.refusedLater(err)
		p.updateHealth(err)
		if n == 0 {
			p.cfg.Logger.Error("cannot start worker", "error", err)
		}
	}
}

// pause waits for between half of d and d, and until workers may be started. It
// returns a worker that Unlock started meanwhile. It returns false if the pool was closed.
func (p *Pool) pause(d time.Duration) (*conn, bool) {
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
		case c := <-p.started:
			return c, true
		case <-p.closed:
			return nil, false
		}
	}
}

// nextChange returns a channel that is closed when live, stopped or health changes.
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

// stop makes cause the reason why no worker is started. Running workers stay; Close ends
// them.
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

// resume allows workers to be started again.
func (p *Pool) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !errors.Is(p.stopped, ErrClosed) {
		p.stopped = nil
	}
	p.signalLocked()
}

// refusedLater puts the guard up if the token refuses a PIN that it accepted before.
func (p *Pool) refusedLater(err error) {
	if !errors.Is(err, hsm.ErrPIN) || errors.Is(p.stopReason(), ErrRefusedBefore) {
		return
	}
	if failed := p.cfg.Guard.raise(); failed != nil {
		p.cfg.Logger.Error("cannot record the refused PIN: do not start again before it is right", "error", failed)
	}
}

func (p *Pool) stopIfRefused(err error) {
	if errors.Is(err, hsm.ErrPIN) {
		p.refusals.Add(1)
		p.cfg.Logger.Error("PIN refused, no worker will be started before it is unlocked", "error", err)
		p.stop(err)
	}
}

// add lets a worker take calls. It returns false if the pool was closed meanwhile.
func (p *Pool) add(c *conn) bool {
	p.mu.Lock()
	if errors.Is(p.stopped, ErrClosed) {
		p.mu.Unlock()
		discard(c)
		return false
	}
	p.worked.Clear()
	if len(*p.live.Load()) == 0 { // the token may be another one than before
		p.returns.Add(1)
	}
	p.setLiveLocked(append(slices.Clone(*p.live.Load()), c))
	p.mu.Unlock()
	p.updateHealth(nil)
	go p.runCanaries(c)
	return true
}

func (p *Pool) remove(c *conn) {
	p.mu.Lock()
	p.setLiveLocked(slices.DeleteFunc(slices.Clone(*p.live.Load()), func(o *conn) bool { return o == c }))
	p.mu.Unlock()
	p.updateHealth(nil)
}

func (p *Pool) setLiveLocked(live []*conn) {
	p.live.Store(&live)
	p.metrics.alive.Set(float64(len(live)))
	p.signalLocked()
}

// signal wakes everything that waits for a change.
func (p *Pool) signal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signalLocked()
}

func (p *Pool) signalLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}
