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

// slow is how many times longer generating and listing keys may take.
const slow = 10

// Sign implements [hsm.Token]. A signature is verified here, in software, before
// it is handed on.
func (p *Pool) Sign(ctx context.Context, key hsm.KeyID, digest []byte) ([]byte, error) {
	if err := border.Digest(digest); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", wire.Sign, err)
	}
	return p.call(ctx, wire.Request{Op: wire.Sign, Key: key, Payload: digest}, func(sig []byte) error { return verify(k, digest, sig) })
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

// Generate implements [hsm.Token]. It is not tried again when its worker dies:
// the key may be there then, see Keys.
func (p *Pool) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := border.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	keys, err := p.keys(ctx, wire.Request{Op: wire.Generate, Payload: wire.AppendSpec(nil, spec)})
	if err != nil {
		return hsm.Key{}, err
	}
	if len(keys) != 1 {
		return hsm.Key{}, fmt.Errorf("generate: worker returned %d keys: %w", len(keys), hsm.ErrUnavailable)
	}
	p.book.add(keys[0])
	return keys[0], nil
}

// Keys implements [hsm.Token].
func (p *Pool) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := p.keys(ctx, wire.Request{Op: wire.Keys})
	if err == nil {
		p.book.learn(keys)
	}
	return keys, err
}

func (p *Pool) keys(ctx context.Context, q wire.Request) ([]hsm.Key, error) {
	if q.Op == wire.Generate {
		p.generating.Lock()
		defer p.generating.Unlock()
	}
	out, err := p.call(ctx, q, nil)
	if err != nil {
		return nil, err
	}
	keys, err := wire.ParseKeys(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", q.Op, err, hsm.ErrUnavailable)
	}
	return keys, nil
}

// checkAnswer judges an answer before it is handed on: what is [hsm.ErrGarbled]
// is asked for once more, elsewhere. nil takes any.
type checkAnswer func(payload []byte) error

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
	if q.Op == wire.Generate || q.Op == wire.Keys {
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
