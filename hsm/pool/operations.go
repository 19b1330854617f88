package pool

import (
	"context"
	"crypto/ecdh"
	"fmt"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/wire"
)

// Keys implements [hsm.Token].
func (p *Pool) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := p.keys(ctx, wire.Keys())
	if err == nil {
		p.book.learn(keys)
	}
	return keys, err
}

// Objects implements [hsm.Token].
func (p *Pool) Objects(ctx context.Context) ([]hsm.Object, error) {
	out, err := p.call(ctx, wire.Objects(), nil)
	if err != nil {
		return nil, err
	}
	objects, err := wire.ParseObjects(out)
	if err != nil {
		return nil, fmt.Errorf("objects: %v: %w", err, hsm.ErrUnavailable)
	}
	return objects, nil
}

// Generate implements [hsm.Token]. Like all that changes the token, it is not
// tried again when its worker dies: the key may be there then, see Keys.
func (p *Pool) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := check.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	return p.key(ctx, wire.Generate(spec))
}

// Restore implements [hsm.Token].
func (p *Pool) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	if _, err := check.Restore(r); err != nil {
		return hsm.Key{}, err
	}
	return p.key(ctx, wire.Restore(r))
}

// Adopt implements [hsm.Token]. The private key crosses the socket to one
// worker, and is erased from the frames on both sides.
func (p *Pool) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	if _, err := check.Adopt(spec, private); err != nil {
		return hsm.Key{}, err
	}
	q := wire.Adopt(spec, private)
	defer clear(q.Payload)
	return p.key(ctx, q)
}

// Destroy implements [hsm.Token]. Every worker lists the token's keys afterwards,
// for a module may give the handle of the old key to a new one. One that does not
// is replaced.
func (p *Pool) Destroy(ctx context.Context, key hsm.KeyID) error {
	k, known := p.book.find(key)
	p.book.forget(key)
	err := p.change(ctx, wire.Destroy(key))
	if err != nil && known {
		p.book.add(k.Key)
	}
	if err == nil {
		p.known.Clear() // no sign of a lost token that it is gone now
		p.relist(ctx)
	}
	return err
}

func (p *Pool) relist(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, l := range *p.live.Load() {
		if _, err := p.list(ctx, l); err != nil {
			l.fail(err)
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

// Certificates implements [hsm.Token].
func (p *Pool) Certificates(ctx context.Context) ([]hsm.Certificate, error) {
	out, err := p.call(ctx, wire.Certificates(), nil)
	if err != nil {
		return nil, err
	}
	certs, err := wire.ParseCertificates(out)
	if err != nil {
		return nil, fmt.Errorf("certificates: %v: %w", err, hsm.ErrUnavailable)
	}
	return certs, nil
}

// change is a call that changes the token and answers nothing.
func (p *Pool) change(ctx context.Context, q wire.Request) error {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	_, err := p.call(ctx, q, sized(0))
	return err
}

// key is a call that puts one key on the token.
func (p *Pool) key(ctx context.Context, q wire.Request) (hsm.Key, error) {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	keys, err := p.keys(ctx, q)
	if err != nil {
		return hsm.Key{}, err
	}
	if len(keys) != 1 {
		return hsm.Key{}, fmt.Errorf("%s: worker returned %d keys: %w", q.Op, len(keys), hsm.ErrUnavailable)
	}
	p.book.add(keys[0])
	return keys[0], nil
}

func (p *Pool) keys(ctx context.Context, q wire.Request) ([]hsm.Key, error) {
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
