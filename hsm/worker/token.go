package worker

import (
	"context"
	"crypto/ecdh"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/border"
	"countersign/hsm/wire"
)

// slow is how many times longer [wire.Op.Slow] operations may take.
const slow = 10

// Sign implements [hsm.Token]. A signature is verified here, in software, before
// it is handed on.
func (p *Pool) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	if err := border.Input(alg, input); err != nil {
		return nil, err
	}
	k, err := p.pinned(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", wire.Sign, err)
	}
	q := wire.Request{Op: wire.Sign, Key: key, Payload: wire.AppendSign(nil, alg, input)}
	if p.cfg.Unverified {
		return p.call(ctx, q, nil)
	}
	return p.call(ctx, q, func(sig []byte) error { return k.verify(alg, input, sig) })
}

// Derive implements [hsm.Token].
func (p *Pool) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) ([]byte, error) {
	if err := border.Peer(peer); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Request{Op: wire.Derive, Key: key, Payload: peer.Bytes()}, sized(border.SecretLen))
}

// MAC implements [hsm.Token].
func (p *Pool) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if err := border.Data(data); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Request{Op: wire.MAC, Key: key, Payload: data}, sized(border.SecretLen))
}

// Import implements [hsm.Token]. Nothing stays on the token, so a worker that
// dies over it may have been through with it.
func (p *Pool) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	if err := border.Import(i); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Request{Op: wire.Import, Key: i.Enrol, Payload: wire.AppendImport(nil, i)}, sized(border.WrappedLen))
}

// MACWrapped implements [hsm.Token].
func (p *Pool) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	if err := border.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	q := wire.Request{Op: wire.MACWrapped, Key: wrap, Payload: wire.AppendMACWrapped(nil, wrapped, data)}
	return p.call(ctx, q, sized(border.SecretLen))
}

// Rewrap implements [hsm.Token]. Like an import it leaves nothing on the token.
func (p *Pool) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	if err := border.Wrapped(r.Wrapped); err != nil {
		return nil, err
	}
	q := wire.Request{Op: wire.Rewrap, Key: r.From, Payload: wire.AppendRewrap(nil, r)}
	return p.call(ctx, q, sized(border.WrappedLen))
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
	start, limit := time.Now(), p.cfg.Timeout
	if q.Op.Slow() {
		limit *= slow
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	answer, err := p.attempt(ctx, errand{q, check, start.Add(limit)})
	p.metrics.observe(q.Op, time.Since(start), answer.Took, err)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	return answer.Payload, nil
}
