package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

const (
	// beat is the time between two canaries of a worker, 500 ms and up to a tenth more.
	beat = 500 * time.Millisecond
	// rounds is how many canaries it takes until each key had its turn: 3 s.
	rounds = 6
	// strikes is how many wrong answers in a row put a worker out of service.
	strikes = 3
)

// prove lets a new worker show that it can use the token before it is given
// calls. The first of a pool uses each key, so that a pair whose halves do not
// match is known at the start; one that replaces another uses one key, and its
// canaries the others soon after: a token that fails now and then would let
// nobody in otherwise. Keys that are gone from the token are told, and not waited
// for.
func (p *Pool) prove(ctx context.Context, l *link) error {
	keys, err := p.list(ctx, l)
	if err != nil {
		return err
	}
	first := p.book.empty()
	if len(keys) == 0 && len(p.book.testable()) > 0 { // not logged in, or another token
		return fmt.Errorf("the token has lost its keys: %w", hsm.ErrUnavailable)
	}
	for _, k := range p.book.learn(keys) {
		p.cfg.Logger.Error("key is gone from the token", "key", k.Label, "id", k.ID.String())
	}
	testable := p.book.testable()
	if !first && len(testable) > 0 {
		n := rand.N(len(testable))
		testable = testable[n : n+1]
	}
	for _, k := range testable {
		if err := p.proveKey(ctx, l, k); err != nil {
			return err
		}
	}
	return nil
}

// proveKey uses a key until it was used right, or wrong three times.
func (p *Pool) proveKey(ctx context.Context, l *link, k pinned) error {
	for {
		err := p.try(ctx, lane{l.lane, p.cfg.Timeout, p.cfg.Timeout + grace}, k)
		if err == nil {
			l.sound()
			return nil
		}
		if !errors.Is(err, hsm.ErrGarbled) || p.struck(l, err) {
			return err
		}
	}
}

// list asks this worker for the token's keys.
func (p *Pool) list(ctx context.Context, l *link) ([]hsm.Key, error) {
	limit := slow * p.cfg.Timeout
	q := wire.Keys()
	q.Deadline = wire.Now() + int64(limit)
	deadline := time.Now().Add(limit)
	answer, err := l.lane.do(ctx, q, patience{hedge: deadline, deadline: deadline, overdue: deadline.Add(grace)})
	if err != nil {
		return nil, err
	}
	return wire.ParseKeys(answer.Payload)
}

// watch sends canaries through a worker for as long as it lives, so that one
// that is hung, lost or wrong is known before a request finds out.
func (p *Pool) watch(l *link) {
	turn := 0
	for {
		timer := time.NewTimer(beat + rand.N(beat/10))
		select {
		case <-l.done:
			timer.Stop()
			return
		case <-timer.C:
		}
		keys := p.book.testable()
		for range (len(keys) + rounds - 1) / rounds {
			turn = (turn + 1) % len(keys)
			p.canary(l, keys[turn])
		}
	}
}

// canary is one test of one key, and what follows from it.
func (p *Pool) canary(l *link, k pinned) {
	err := p.try(context.Background(), lane{l.lane, p.patience(), p.cfg.Timeout + grace}, k)
	if _, still := p.book.find(k.ID); l.lost() || !still {
		return
	}
	switch {
	case err == nil:
		l.sound()
		l.setSilent(false) // what the lane answers, the others may hope for
		p.judge(nil)
		return
	case errors.Is(err, hsm.ErrGarbled):
		p.struck(l, err)
	case errors.Is(err, errLate):
		l.suspect()
		p.judge(nil)
	case errors.Is(err, hsm.ErrKey): // it was there when the worker began
		l.fail(err)
	case l.failed() >= strikes: // alive, and of no use
		l.fail(err)
	}
	p.metrics.canaries.Inc()
	p.cfg.Logger.Warn("canary failed", "pid", l.pid(), "key", k.Label, "error", err)
}

// struck counts a wrong answer of a worker; the third in a row ends it.
func (p *Pool) struck(l *link, err error) (out bool) {
	p.metrics.garbled.Inc()
	if l.strike() < strikes {
		return false
	}
	p.metrics.quarantines.Inc()
	p.cfg.Logger.Error("worker quarantined: it gave wrong answers", "pid", l.pid(), "in_a_row", strikes, "error", err)
	l.fail(err)
	return true
}
