package pool

import (
	"context"
	"crypto/ecdh"
	"fmt"
	"slices"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/wire"
)

// slow is how many times longer [wire.Op.Slow] operations may take.
const slow = 10

// Sign implements [hsm.Token]. It verifies the signature, in software.
func (p *Pool) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	if err := check.Input(alg, input); err != nil {
		return nil, err
	}
	k, err := p.key(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	t := task{Request: wire.Sign(key, alg, input)}
	if !p.cfg.Unverified {
		t.signature = true
		t.check = func(sig []byte) error { return k.verify(alg, input, sig) }
	}
	return p.do(ctx, t)
}

// Decap implements [hsm.Token].
func (p *Pool) Decap(ctx context.Context, key hsm.KeyID, kem hsm.KEM, enc *ecdh.PublicKey) ([]byte, error) {
	if err := check.Decap(kem, enc); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Decap(key, kem, enc), length(check.SecretLen))
}

// MAC implements [hsm.Token].
func (p *Pool) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if err := check.Data(data); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.MAC(key, data), length(check.SecretLen))
}

// Import implements [hsm.Token]. It leaves nothing on the token, so it may be repeated.
func (p *Pool) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	if err := check.Import(i); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Import(i), kept)
}

// MACWrapped implements [hsm.Token].
func (p *Pool) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	if err := check.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.MACWrapped(wrap, wrapped, data), length(check.SecretLen))
}

// Rewrap implements [hsm.Token]. It leaves nothing on the token, so it may be repeated.
func (p *Pool) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	if err := check.Kept(r.Wrapped); err != nil {
		return nil, err
	}
	return p.call(ctx, wire.Rewrap(r), kept)
}

// Keys implements [hsm.Token].
func (p *Pool) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := listed(ctx, p, wire.Keys(), wire.ParseKeys)
	if err == nil {
		p.keys.replace(keys)
	}
	return keys, err
}

// Foreign implements [hsm.Token]. Their signatures are verified as well.
func (p *Pool) Foreign(ctx context.Context) ([]hsm.Key, error) {
	keys, err := listed(ctx, p, wire.Foreign(), wire.ParseKeys)
	for _, k := range keys {
		p.keys.add(k)
	}
	return keys, err
}

// Know implements [hsm.Token]. Every worker learns the public keys, those that are started later as
// well, and lists the token's keys anew.
func (p *Pool) Know(ctx context.Context, publics [][]byte) error {
	news, err := p.known.add(publics)
	if err == nil && news {
		p.relist(ctx)
	}
	return err
}

// Objects implements [hsm.Token].
func (p *Pool) Objects(ctx context.Context) ([]hsm.Object, error) {
	return listed(ctx, p, wire.Objects(), wire.ParseObjects)
}

// Certificates implements [hsm.Token].
func (p *Pool) Certificates(ctx context.Context) ([]hsm.Certificate, error) {
	return listed(ctx, p, wire.Certificates(), wire.ParseCertificates)
}

// Generate implements [hsm.Token].
func (p *Pool) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := check.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	return p.newKey(ctx, wire.Generate(spec))
}

// Restore implements [hsm.Token].
func (p *Pool) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	if _, err := check.Restore(r); err != nil {
		return hsm.Key{}, err
	}
	return p.newKey(ctx, wire.Restore(r))
}

// Adopt implements [hsm.Token]. The private key crosses the socket to one
// worker, and both sides erase it from their buffers.
func (p *Pool) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	if _, err := check.Adopt(spec, private); err != nil {
		return hsm.Key{}, err
	}
	q := wire.Adopt(spec, private)
	defer clear(q.Payload)
	return p.newKey(ctx, q)
}

// Destroy implements [hsm.Token]. Afterwards every worker lists the token's keys, because
// a module may give the handle of the old key to a new one. A worker that cannot list
// them is replaced.
func (p *Pool) Destroy(ctx context.Context, key hsm.KeyID) error {
	k, known := p.keys.find(key)
	p.keys.remove(key)
	err := p.change(ctx, wire.Destroy(key))
	if err != nil && known {
		p.keys.add(k.Key)
	}
	if err == nil {
		p.worked.Clear() // its absence is no sign of a lost token
		p.relist(ctx)
	}
	return err
}

func (p *Pool) relist(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, c := range *p.live.Load() {
		if _, err := p.list(ctx, c); err != nil {
			c.fail(err)
		}
	}
}

// StoreCertificate implements [hsm.Token].
func (p *Pool) StoreCertificate(ctx context.Context, c hsm.Certificate) error {
	if _, err := check.Certificate(c); err != nil {
		return err
	}
	return p.change(ctx, wire.StoreCertificate(c))
}

// change does a call that changes the token and returns nothing.
func (p *Pool) change(ctx context.Context, q wire.Request) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	_, err := p.call(ctx, q, length(0))
	return err
}

// newKey does a call that puts one key on the token. If its worker dies it is not
// repeated: the key may be there then.
func (p *Pool) newKey(ctx context.Context, q wire.Request) (hsm.Key, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	began := time.Now()
	keys, err := listed(ctx, p, q, wire.ParseKeys)
	if err != nil {
		return hsm.Key{}, err
	}
	if len(keys) != 1 {
		return hsm.Key{}, fmt.Errorf("%s: worker returned %d keys: %w", q.Op, len(keys), hsm.ErrUnavailable)
	}
	p.keys.add(keys[0])
	p.show(ctx, keys[0], began)
	return keys[0], nil
}

// errHidden means that a worker does not see a key that another one made. A module may show a process
// only the objects that were on the token when the process began, as nShield's does by default.
var errHidden = fmt.Errorf("it does not see a key that another worker made: %w", hsm.ErrUnavailable)

// show replaces the workers that do not see a key whose making began at that time. Once two workers
// that started before have seen one, the module is believed to show them.
func (p *Pool) show(ctx context.Context, made hsm.Key, began time.Time) {
	if p.shows.Load() {
		return
	}
	ctx = context.WithoutCancel(ctx)
	seen := 0
	for _, c := range *p.live.Load() {
		keys, err := p.list(ctx, c)
		if err == nil && !slices.ContainsFunc(keys, func(k hsm.Key) bool { return k.ID == made.ID }) {
			err = fmt.Errorf("key %q: %w", made.Label, errHidden)
		}
		if err != nil {
			c.fail(err)
			continue
		}
		if c.started.Before(began) {
			seen++
		}
	}
	p.shows.Store(seen > 1)
}

// listed does a call that returns a list.
func listed[T any](ctx context.Context, p *Pool, q wire.Request, parse func([]byte) ([]T, error)) ([]T, error) {
	out, err := p.call(ctx, q, nil)
	if err != nil {
		return nil, err
	}
	list, err := parse(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", q.Op, err, hsm.ErrUnavailable)
	}
	return list, nil
}

// task is a request with the check of its answer.
type task struct {
	wire.Request
	check     func(payload []byte) error // nil accepts every answer
	signature bool                       // check verifies a signature
	deadline  time.Time
}

// length returns a check that accepts answers of n bytes.
func length(n int) func([]byte) error {
	return func(payload []byte) error {
		if len(payload) != n {
			return fmt.Errorf("answer of %d bytes, want %d: %w", len(payload), n, hsm.ErrGarbled)
		}
		return nil
	}
}

// kept checks a wrapped secret.
func kept(payload []byte) error {
	if err := check.Kept(payload); err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrGarbled)
	}
	return nil
}

func (p *Pool) call(ctx context.Context, q wire.Request, check func([]byte) error) ([]byte, error) {
	return p.do(ctx, task{Request: q, check: check})
}

// do does one task within its deadline, and observes it.
func (p *Pool) do(ctx context.Context, t task) ([]byte, error) {
	start, limit := time.Now(), p.cfg.Timeout
	if t.Op.Slow() {
		limit *= slow
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Op, err)
	}
	t.deadline = start.Add(limit)
	answer, err := p.attempt(ctx, t)
	p.metrics.observe(t.Op, time.Since(start), answer.Took, err)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Op, err)
	}
	return answer.Payload, nil
}
