package worker

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/border"
	"countersign/hsm/wire"
)

// slow is how many times longer [wire.Op.Slow] operations may take.
const slow = 10

// Sign implements [hsm.Token].
func (p *Pool) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	if err := border.Input(alg, input); err != nil {
		return nil, err
	}
	q := wire.Request{Op: wire.Sign, Key: key, Payload: wire.AppendSign(nil, alg, input)}
	return p.call(ctx, q, border.SignatureLen(alg))
}

// Derive implements [hsm.Token].
func (p *Pool) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) ([]byte, error) {
	if err := border.Peer(peer); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Request{Op: wire.Derive, Key: key, Payload: peer.Bytes()}, border.SecretLen)
}

// MAC implements [hsm.Token].
func (p *Pool) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if err := border.Data(data); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Request{Op: wire.MAC, Key: key, Payload: data}, border.SecretLen)
}

// Import implements [hsm.Token]. Nothing stays on the token, so a worker that
// dies over it may have been through with it.
func (p *Pool) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	if err := border.Import(i); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Request{Op: wire.Import, Key: i.Enrol, Payload: wire.AppendImport(nil, i)}, border.WrappedLen)
}

// MACWrapped implements [hsm.Token].
func (p *Pool) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	if err := border.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	q := wire.Request{Op: wire.MACWrapped, Key: wrap, Payload: wire.AppendMACWrapped(nil, wrapped, data)}
	return p.call(ctx, q, border.SecretLen)
}

// call does one request within its deadline, and observes it. size is the
// length of the answer in bytes, -1 for any.
func (p *Pool) call(ctx context.Context, q wire.Request, size int) ([]byte, error) {
	start, patience := time.Now(), p.cfg.Timeout
	if q.Op.Slow() {
		patience *= slow
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	answer, err := p.attempt(ctx, q, start.Add(patience))
	p.metrics.observe(q.Op, time.Since(start), answer.Took, err)
	if err == nil && size >= 0 && len(answer.Payload) != size {
		err = fmt.Errorf("answer of %d bytes, want %d: %w", len(answer.Payload), size, hsm.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	return answer.Payload, nil
}

// attempt tries a call on one worker and, when that one dies over it and the
// call may be done twice, once more on another.
func (p *Pool) attempt(ctx context.Context, q wire.Request, deadline time.Time) (wire.Response, error) {
	q.Deadline = wire.Now() + int64(time.Until(deadline))
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(deadline) {
		q.Deadline = wire.Now() + int64(time.Until(earlier))
	}
	var avoid *link
	for {
		l, err := p.pick(ctx, deadline, avoid)
		if err != nil {
			return wire.Response{}, err
		}
		answer, err := l.do(ctx, q, deadline)
		if err == nil {
			p.served(q)
			return answer, nil
		}
		if !errors.Is(err, errDied) && !errors.Is(err, wire.ErrLost) && !p.keyLost(q, err) {
			return answer, err
		}
		l.fail(err)
		if avoid != nil || !q.Op.Repeatable() {
			return answer, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
		}
		avoid = l
	}
}

// use is a key and what it was used for.
type use struct {
	key, wrap hsm.KeyID // wrap is the second key of an import
	op        wire.Op
	alg       hsm.Algorithm // of a signature
}

func useOf(q wire.Request) use {
	u := use{key: q.Key, op: q.Op}
	switch q.Op {
	case wire.Import:
		copy(u.wrap[:], q.Payload)
	case wire.Sign:
		u.alg = hsm.Algorithm(q.Payload[0])
	}
	return u
}

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

// pick returns the worker with the least to do, waiting for one when none is
// there. One that let somebody wait in vain is the last choice.
func (p *Pool) pick(ctx context.Context, deadline time.Time, avoid *link) (*link, error) {
	if l := p.leastLoaded(avoid); l != nil {
		return l, nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		p.mu.Lock()
		changed, stopped := p.changed, p.stopped
		p.mu.Unlock()
		if l := p.leastLoaded(avoid); l != nil {
			return l, nil
		}
		if stopped != nil {
			return nil, stopped
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, fmt.Errorf("no worker is there: %w", hsm.ErrUnavailable)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// leastLoaded prefers the first of several that are idle: its caches are warm.
func (p *Pool) leastLoaded(avoid *link) (best *link) {
	least := int64(0)
	for _, l := range *p.live.Load() {
		load := l.load.Load()
		if l.late.Load() {
			load += maxInFlight
		}
		if l != avoid && !l.lost() && (best == nil || load < least) {
			best, least = l, load
		}
	}
	return best
}
