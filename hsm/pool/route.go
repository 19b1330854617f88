package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// tries is how many workers one call may wear out. Two die at once when a module
// is killed by what all of them were given.
const tries = 3

// errand is a request with how its answer is judged, and when it must be there.
type errand struct {
	wire.Request
	check    checkAnswer
	verified bool // check verifies a signature
	deadline time.Time
}

// attempt does a call on one worker and, where the call may be done twice and
// another answer is to be hoped for, again on another.
func (p *Pool) attempt(ctx context.Context, e errand) (answer wire.Response, err error) {
	e.Request.Deadline = wire.Now() + int64(time.Until(e.deadline))
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(e.deadline) {
		e.Request.Deadline = wire.Now() + int64(time.Until(earlier))
	}
	var avoid *link
	for n := 1; ; n++ {
		l, err := p.pick(ctx, e.deadline, avoid)
		if err != nil {
			return wire.Response{}, err
		}
		answer, err = p.ask(ctx, l, e)
		if err == nil {
			return answer, nil
		}
		if n == tries || !p.again(l, e, err) {
			return answer, outward(err)
		}
		p.metrics.retries.Inc()
		avoid = l
	}
}

// ask does a call on one worker and judges the answer.
func (p *Pool) ask(ctx context.Context, l *link, e errand) (wire.Response, error) {
	answer, err := l.do(ctx, e.Request, p.bounds(l, e))
	if err != nil {
		return answer, err
	}
	if e.check != nil {
		if err := e.check(answer.Payload); err != nil {
			clear(answer.Payload)
			return wire.Response{Took: answer.Took}, err
		}
	}
	if e.verified {
		l.sound()
	}
	p.served(e.Request)
	return answer, nil
}

// bounds says how long this worker is waited for: until the deadline, or until
// it has been silent for so long that another one is worth asking.
func (p *Pool) bounds(l *link, e errand) patience {
	w := patience{hedge: e.deadline, deadline: e.deadline, overdue: e.deadline.Add(grace)}
	if !e.Op.Slow() {
		w.hedge = time.Now().Add(p.patience())
		w.elsewhere = func() bool { return p.another(l) }
	}
	return w
}

// again tells whether another try may end better, and deals with the worker.
func (p *Pool) again(l *link, e errand, err error) bool {
	switch {
	case errors.Is(err, errDied), errors.Is(err, wire.ErrLost), p.keyLost(e.Request, err):
		l.fail(err)
		return e.Op.Repeatable()
	case errors.Is(err, hsm.ErrGarbled):
		p.struck(l, err)
		return e.Op.Repeatable()
	default:
		return e.Op.Repeatable() && errors.Is(err, errLate) && time.Now().Before(e.deadline)
	}
}

// outward is what a caller learns: every failure to reach the token is
// [hsm.ErrUnavailable].
func outward(err error) error {
	if errors.Is(err, errDied) {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	return err
}

// use is a key and what it was used for.
type use struct {
	key    hsm.KeyID
	op     wire.Op
	detail string // [wire.Request.Detail]
}

func useOf(q wire.Request) use { return use{q.Key, q.Op, q.Detail} }

// served remembers that a key was there.
func (p *Pool) served(q wire.Request) {
	if _, known := p.known.Load(useOf(q)); !known {
		p.known.Store(useOf(q), nil)
	}
}

// keyLost tells a lost token from a key that never was: SoftHSM without its
// directory says that there is no such key. A worker started afterwards is
// believed again.
func (p *Pool) keyLost(q wire.Request, err error) bool {
	_, known := p.known.Load(useOf(q))
	return known && errors.Is(err, hsm.ErrKey)
}

// pick returns the worker with the least to do of those that are well, and not
// the one to be avoided if there is another. Where none is well it is one that
// may recover in time, or the error of the breaker.
func (p *Pool) pick(ctx context.Context, deadline time.Time, avoid *link) (*link, error) {
	if l := p.leastLoaded(avoid); l != nil && l.well() {
		return l, nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		changed := p.nextChange()
		l := p.leastLoaded(avoid)
		if l != nil && l.well() {
			return l, nil
		}
		if err := p.health.down(); err != nil {
			return nil, err
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, errNobody
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// leastLoaded prefers those that are well, then those that are not to be
// avoided, then those with the least to do; and the first of several that are
// idle: its caches are warm.
func (p *Pool) leastLoaded(avoid *link) (best *link) {
	least := int64(0)
	for _, l := range *p.live.Load() {
		load := l.load.Load()
		if l == avoid {
			load += maxInFlight
		}
		if !l.well() {
			load += 2 * maxInFlight
		}
		if !l.lost() && (best == nil || load < least) {
			best, least = l, load
		}
	}
	return best
}

// another tells whether some other worker is well.
func (p *Pool) another(than *link) bool {
	for _, l := range *p.live.Load() {
		if l != than && l.well() {
			return true
		}
	}
	return false
}
