package worker

import (
	"context"
	"crypto/ecdh"
	"fmt"

	"countersign/hsm"
	"countersign/hsm/internal/border"
	"countersign/hsm/wire"
)

// Encrypt implements [hsm.Token].
func (p *Pool) Encrypt(ctx context.Context, key hsm.KeyID, plain, aad []byte) ([]byte, error) {
	if err := border.Plain(plain, aad); err != nil {
		return nil, err
	}
	q := wire.Request{Op: wire.Encrypt, Key: key, Payload: wire.AppendCrypt(nil, plain, aad)}
	return p.call(ctx, q, sized(border.NonceLen+len(plain)+border.TagLen))
}

// Decrypt implements [hsm.Token].
func (p *Pool) Decrypt(ctx context.Context, key hsm.KeyID, box, aad []byte) ([]byte, error) {
	if err := border.Box(box, aad); err != nil {
		return nil, err
	}
	q := wire.Request{Op: wire.Decrypt, Key: key, Payload: wire.AppendCrypt(nil, box, aad)}
	return p.call(ctx, q, sized(len(box)-border.NonceLen-border.TagLen))
}

// Keys implements [hsm.Token].
func (p *Pool) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := p.keys(ctx, wire.Request{Op: wire.Keys})
	if err == nil {
		p.book.learn(keys)
	}
	return keys, err
}

// Objects implements [hsm.Token].
func (p *Pool) Objects(ctx context.Context) ([]hsm.Object, error) {
	out, err := p.call(ctx, wire.Request{Op: wire.Objects}, nil)
	if err != nil {
		return nil, err
	}
	objects, err := wire.ParseObjects(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", wire.Objects, err, hsm.ErrUnavailable)
	}
	return objects, nil
}

// Generate implements [hsm.Token]. Like all that changes the token, it is not
// tried again when its worker dies: the key may be there then, see Keys.
func (p *Pool) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := border.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	return p.key(ctx, wire.Request{Op: wire.Generate, Payload: wire.AppendSpec(nil, spec)})
}

// Restore implements [hsm.Token].
func (p *Pool) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	if _, err := border.Restore(r); err != nil {
		return hsm.Key{}, err
	}
	return p.key(ctx, wire.Request{Op: wire.Restore, Key: r.With, Payload: wire.AppendRestore(nil, r)})
}

// Adopt implements [hsm.Token]. The private key crosses the socket to one
// worker, and is erased from the frames on both sides.
func (p *Pool) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	if _, err := border.Adopt(spec, private); err != nil {
		return hsm.Key{}, err
	}
	payload := wire.AppendAdopt(make([]byte, 0, 128), spec, private) // growing would leave a copy behind
	defer clear(payload)
	return p.key(ctx, wire.Request{Op: wire.Adopt, Payload: payload})
}

// Destroy implements [hsm.Token]. Every worker lists the token's keys afterwards,
// for a module may give the handle of the old key to a new one. One that does not
// is replaced.
func (p *Pool) Destroy(ctx context.Context, key hsm.KeyID) error {
	k, known := p.book.find(key)
	p.book.forget(key)
	err := p.change(ctx, wire.Request{Op: wire.Destroy, Key: key})
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
	if _, err := border.Certificate(c); err != nil {
		return err
	}
	return p.change(ctx, wire.Request{Op: wire.StoreCertificate, Key: c.Key, Payload: wire.AppendCertificate(nil, c)})
}

// Certificates implements [hsm.Token].
func (p *Pool) Certificates(ctx context.Context) ([]hsm.Certificate, error) {
	out, err := p.call(ctx, wire.Request{Op: wire.Certificates}, nil)
	if err != nil {
		return nil, err
	}
	certs, err := wire.ParseCertificates(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", wire.Certificates, err, hsm.ErrUnavailable)
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
