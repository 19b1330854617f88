package pool

import (
	"context"
	"crypto/ecdh"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/wire"
)

// slow is how many times longer [wire.Op.Slow] operations may take.
const slow = 10

// Sign implements [hsm.Token]. A signature is verified here, in software, before
// it is handed on.
func (p *Pool) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	if err := check.Input(alg, input); err != nil {
		return nil, err
	}
	k, err := p.pinned(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	q := wire.Sign(key, alg, input)
	if p.cfg.Unverified {
		return p.call(ctx, q, nil)
	}
	return p.do(ctx, errand{Request: q, verified: true, check: func(sig []byte) error { return k.verify(alg, input, sig) }})
}

// Derive implements [hsm.Token].
func (p *Pool) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) ([]byte, error) {
	if err := check.Peer(peer); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Derive(key, peer), sized(check.SecretLen))
}

// MAC implements [hsm.Token].
func (p *Pool) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if err := check.Data(data); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.MAC(key, data), sized(check.SecretLen))
}

// Import implements [hsm.Token]. Nothing stays on the token, so a worker that
// dies over it may have been through with it.
func (p *Pool) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	if err := check.Import(i); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Import(i), sized(check.WrappedLen))
}

// MACWrapped implements [hsm.Token].
func (p *Pool) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	if err := check.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.MACWrapped(wrap, wrapped, data), sized(check.SecretLen))
}

// Rewrap implements [hsm.Token]. Like an import it leaves nothing on the token.
func (p *Pool) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	if err := check.Wrapped(r.Wrapped); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Rewrap(r), sized(check.WrappedLen))
}

// checkAnswer judges an answer before it is handed on: what is [hsm.ErrGarbled]
// is asked for once more, elsewhere. nil takes any.
type checkAnswer func(payload []byte) error

// sized takes answers of so many bytes.
func sized(size int) checkAnswer {
	return func(payload []byte) error {
		if len(payload) != size {
			return fmt.Errorf("answer of %d bytes, want %d: %w", len(payload), size, hsm.ErrGarbled)
		}
		return nil
	}
}

// call does one request within its deadline, and observes it.
func (p *Pool) call(ctx context.Context, q wire.Request, check checkAnswer) ([]byte, error) {
	return p.do(ctx, errand{Request: q, check: check})
}

func (p *Pool) do(ctx context.Context, q errand) ([]byte, error) {
	start, limit := time.Now(), p.cfg.Timeout
	if q.Op.Slow() {
		limit *= slow
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	q.deadline = start.Add(limit)
	answer, err := p.attempt(ctx, q)
	p.metrics.observe(q.Op, time.Since(start), answer.Took, err)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	return answer.Payload, nil
}
