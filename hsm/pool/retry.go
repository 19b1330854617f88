package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// attempt does a task on one worker and, if [Pool.retry] allows it, on another:
// [hsm.Tries] workers at most.
func (p *Pool) attempt(ctx context.Context, t task) (answer wire.Response, err error) {
	t.Request.Deadline = wire.Now() + int64(time.Until(t.deadline))
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(t.deadline) {
		t.Request.Deadline = wire.Now() + int64(time.Until(earlier))
	}
	var avoid *conn
	for n := 1; ; n++ {
		c, err := p.pick(ctx, t.deadline, avoid)
		if err != nil {
			return wire.Response{}, err
		}
		answer, err = p.ask(ctx, c, t)
		if err == nil {
			return answer, nil
		}
		if n == hsm.Tries || !p.retry(c, t, err) {
			return answer, public(err)
		}
		p.metrics.retries.Inc()
		avoid = c
	}
}

// ask does a task on one worker and checks the answer.
func (p *Pool) ask(ctx context.Context, c *conn, t task) (wire.Response, error) {
	answer, err := c.do(ctx, t.Request, p.limits(c, t))
	if err != nil {
		return answer, err
	}
	if t.check != nil {
		if err := t.check(answer.Payload); err != nil {
			clear(answer.Payload)
			return wire.Response{Took: answer.Took}, err
		}
	}
	if t.signature {
		c.answeredRight()
	}
	p.noteWorked(t.Request)
	return answer, nil
}

// limits returns how long the caller waits for this worker: until the deadline, or
// until it has been silent for so long that another one is worth asking.
func (p *Pool) limits(c *conn, t task) limits {
	l := limits{hedge: t.deadline, deadline: t.deadline, overdue: t.deadline.Add(grace)}
	if !t.Op.Slow() {
		l.hedge = time.Now().Add(p.silenceLimit())
		l.elsewhere = func() bool { return p.anotherIsWell(c) }
	}
	return l
}

// retry reports whether another worker may succeed, and fails the worker if it is lost.
// What changes the token is never repeated: it may have been done.
func (p *Pool) retry(c *conn, t task, err error) bool {
	switch {
	case errors.Is(err, errDied), errors.Is(err, wire.ErrLost), p.keyLost(t.Request, err):
		c.fail(err)
		return t.Op.Repeatable()
	case errors.Is(err, hsm.ErrGarbled):
		p.wrongAnswer(c, err)
		return t.Op.Repeatable()
	default:
		return t.Op.Repeatable() && errors.Is(err, errLate) && time.Now().Before(t.deadline)
	}
}

// public makes every failure to reach the token [hsm.ErrUnavailable] for callers.
func public(err error) error {
	if errors.Is(err, errDied) {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	return err
}

// use is a key and the operation it was used for.
type use struct {
	key    hsm.KeyID
	op     wire.Op
	detail string // [wire.Request.Detail]
}

func useOf(q wire.Request) use { return use{q.Key, q.Op, q.Detail} }

// noteWorked remembers that the token has the key.
func (p *Pool) noteWorked(q wire.Request) {
	if _, known := p.worked.Load(useOf(q)); !known {
		p.worked.Store(useOf(q), nil)
	}
}

// keyLost distinguishes a lost token from a key that never existed: SoftHSM without its
// directory answers that there is no such key. A worker that started later is believed.
func (p *Pool) keyLost(q wire.Request, err error) bool {
	_, known := p.worked.Load(useOf(q))
	return known && errors.Is(err, hsm.ErrKey)
}

// pick returns the worker with the least to do of those that are well, other than avoid if
// possible. If none is well it returns one that may recover in time, or the reason why
// calls are refused.
func (p *Pool) pick(ctx context.Context, deadline time.Time, avoid *conn) (*conn, error) {
	if c := p.leastLoaded(avoid); c != nil && c.well() {
		return c, nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		changed := p.nextChange()
		c := p.leastLoaded(avoid)
		if c != nil && c.well() {
			return c, nil
		}
		if err := p.health.down(); err != nil {
			return nil, err
		}
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, errNoWorker
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// leastLoaded prefers workers that are well, then those other than avoid, then those
// with the least to do. Of several idle workers it returns the first, whose caches are warm.
func (p *Pool) leastLoaded(avoid *conn) (best *conn) {
	least := int64(0)
	for _, c := range *p.live.Load() {
		load := c.inFlight.Load()
		if c == avoid {
			load += maxInFlight
		}
		if !c.well() {
			load += 2 * maxInFlight
		}
		if !c.lost() && (best == nil || load < least) {
			best, least = c, load
		}
	}
	return best
}

// anotherIsWell reports whether a worker other than c is well.
func (p *Pool) anotherIsWell(c *conn) bool {
	for _, other := range *p.live.Load() {
		if other != c && other.well() {
			return true
		}
	}
	return false
}
