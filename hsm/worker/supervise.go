package worker

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

// supervise replaces a worker whenever it is lost, until the pool stops.
func (p *Pool) supervise(l *link) {
	delay := time.Duration(0)
	for l != nil {
		<-l.done
		p.remove(l)
		l.proc.end()
		_ = l.sock.Close()
		if errors.Is(l.failure(), ErrClosed) {
			return
		}
		p.cfg.Logger.Warn("worker lost", "pid", l.proc.cmd.Process.Pid,
			"status", l.proc.cmd.ProcessState.String(), "error", l.failure())
		if time.Since(l.started) > settled {
			delay = 0
		}
		l = p.replace(&delay)
	}
}

// replace starts a worker, again and again; nil when the pool stopped.
func (p *Pool) replace(delay *time.Duration) *link {
	for reported := false; ; {
		if !p.pause(*delay) {
			return nil
		}
		*delay = min(max(2**delay, 20*time.Millisecond), maxBackOff)
		l, err := p.start(context.Background())
		if err == nil {
			p.metrics.restarts.Inc()
			if !p.add(l) {
				return nil
			}
			return l
		}
		if !reported {
			p.cfg.Logger.Error("cannot start worker", "error", err)
			reported = true
		}
	}
}

// pause waits for between half of d and d; false when the pool stopped.
func (p *Pool) pause(d time.Duration) bool {
	if d > 0 {
		d = d/2 + rand.N(d/2)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return p.stopReason() == nil
	case <-p.closed:
		return false
	}
}

func (p *Pool) stopReason() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

// stop makes cause the reason why no worker is started any more. Those that
// run stay; Close ends them.
func (p *Pool) stop(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.stopped, ErrClosed) {
		return
	}
	if p.stopped = cause; errors.Is(cause, ErrClosed) {
		close(p.closed)
	}
	p.changeLocked(*p.live.Load())
}

func (p *Pool) stopIfRefused(err error) {
	if errors.Is(err, hsm.ErrPIN) {
		p.cfg.Logger.Error("PIN refused, no worker will be started again", "error", err)
		p.stop(err)
	}
}

// add lets a worker take calls; false when the pool was closed meanwhile.
func (p *Pool) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.stopped, ErrClosed) {
		l.fail(ErrClosed)
		go func() {
			l.proc.end()
			_ = l.sock.Close()
		}()
		return false
	}
	p.known.Clear()
	p.changeLocked(append(slices.Clone(*p.live.Load()), l))
	return true
}

func (p *Pool) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := slices.DeleteFunc(slices.Clone(*p.live.Load()), func(o *link) bool { return o == l })
	p.changeLocked(live)
}

func (p *Pool) changeLocked(live []*link) {
	p.live.Store(&live)
	p.metrics.alive.Set(float64(len(live)))
	close(p.changed)
	p.changed = make(chan struct{})
}
