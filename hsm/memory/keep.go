package memory

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// Generate implements [hsm.Token].
func (t *Token) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := check.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	if err := ctx.Err(); err != nil {
		return hsm.Key{}, fmt.Errorf("generating key: %w", err)
	}
	e, err := newEntry(spec)
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key: %v: %w", err, hsm.ErrUnavailable)
	}
	sealed, err := e.seal(spec)
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key: %w", err)
	}
	if e.history = hsm.AttrLocal | hsm.AttrAlwaysSensitive; sealed == nil {
		e.history |= hsm.AttrNeverExtractable
	}
	k, err := t.add(e)
	k.Sealed, k.Copied = sealed, sealed != nil
	return k, err
}

func (e entry) seal(spec hsm.KeySpec) (all []hsm.Sealed, err error) {
	key, err := e.export()
	if err != nil {
		return nil, err
	}
	for _, r := range spec.Recipients {
		ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		sealed, err := kwp.Seal(spec, r, ephemeral, key)
		if err != nil {
			return nil, err
		}
		all = append(all, sealed)
	}
	return all, nil
}

// add puts a key where neither label nor id is taken.
func (t *Token) add(e entry) (hsm.Key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.keys {
		if k.Label == e.Label || k.ID == e.ID {
			return hsm.Key{}, fmt.Errorf("adding key %q, %s: %w", e.Label, e.ID, hsm.ErrExists)
		}
	}
	t.keys[e.ID] = e
	return e.copy(), nil
}

// Restore implements [hsm.Token].
func (t *Token) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	want, err := check.Restore(r)
	if err != nil {
		return hsm.Key{}, err
	}
	with, err := t.find(ctx, r.With, hsm.DeriveP256)
	if err != nil {
		return hsm.Key{}, err
	}
	key, err := kwp.Unseal(r.Spec, with.ecdh, r.Sealed)
	if err != nil {
		return hsm.Key{}, fmt.Errorf("restoring key: %w", err)
	}
	if !r.Spec.Usage.Pair() {
		return t.add(entry{Key: want, secret: key})
	}
	private, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return hsm.Key{}, fmt.Errorf("restoring key: %v: %w", err, hsm.ErrInput)
	}
	e, err := pairEntry(r.Spec, private)
	if err != nil || e.ID != want.ID {
		return hsm.Key{}, fmt.Errorf("restoring key: it is %s, not %s: %w", e.ID, want.ID, hsm.ErrInput)
	}
	return t.add(e)
}

// Adopt implements [hsm.Token].
func (t *Token) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	k, err := check.Adopt(spec, private)
	if err != nil {
		return hsm.Key{}, err
	}
	if err := ctx.Err(); err != nil {
		return hsm.Key{}, fmt.Errorf("adopting key: %w", err)
	}
	return t.add(entry{Key: k, ecdh: private})
}

// Destroy implements [hsm.Token].
func (t *Token) Destroy(ctx context.Context, key hsm.KeyID) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("destroying key %s: %w", key, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.keys[key]; !ok {
		return fmt.Errorf("destroying key %s: %w", key, hsm.ErrKey)
	}
	delete(t.keys, key)
	t.certs = slices.DeleteFunc(t.certs, func(c hsm.Certificate) bool { return c.Key == key })
	return nil
}

// StoreCertificate implements [hsm.Token].
func (t *Token) StoreCertificate(ctx context.Context, c hsm.Certificate) error {
	if _, err := check.Certificate(c); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("storing certificate: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	same := func(o hsm.Certificate) bool { return string(o.DER) == string(c.DER) }
	if !slices.ContainsFunc(t.certs, same) {
		c.DER = slices.Clone(c.DER)
		t.certs = append(t.certs, c)
	}
	return nil
}

// Certificates implements [hsm.Token].
func (t *Token) Certificates(ctx context.Context) ([]hsm.Certificate, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing certificates: %w", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Clone(t.certs), nil
}
