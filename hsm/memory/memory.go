// Package memory is the contract of package hsm in Go crypto, for unit tests of
// the rooms above it. It keeps nothing and protects nothing: its keys lie in
// the memory of the process.
package memory

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"countersign/hsm"
	"countersign/hsm/internal/border"
	"countersign/hsm/internal/kwp"
)

// Token implements [hsm.Token] over a map. The zero value is not ready; use
// [New]. Safe for concurrent use.
type Token struct {
	mu   sync.RWMutex // guards keys
	keys map[hsm.KeyID]entry
}

// entry is one key; which of the three is set follows from its usage.
type entry struct {
	hsm.Key
	signer *ecdsa.PrivateKey
	ecdh   *ecdh.PrivateKey
	secret []byte
}

// New returns an empty token.
func New() *Token { return &Token{keys: map[hsm.KeyID]entry{}} }

// Sign implements [hsm.Token].
func (t *Token) Sign(ctx context.Context, key hsm.KeyID, digest []byte) ([]byte, error) {
	if err := border.Digest(digest); err != nil {
		return nil, err
	}
	e, err := t.find(ctx, key, hsm.SignP256)
	if err != nil {
		return nil, err
	}
	r, s, err := ecdsa.Sign(rand.Reader, e.signer, digest)
	if err != nil {
		return nil, fmt.Errorf("signing: %v: %w", err, hsm.ErrUnavailable)
	}
	out := make([]byte, 2*border.SecretLen)
	r.FillBytes(out[:border.SecretLen])
	s.FillBytes(out[border.SecretLen:])
	return out, nil
}

// Derive implements [hsm.Token].
func (t *Token) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) ([]byte, error) {
	if err := border.Peer(peer); err != nil {
		return nil, err
	}
	e, err := t.find(ctx, key, hsm.DeriveP256)
	if err != nil {
		return nil, err
	}
	z, err := e.ecdh.ECDH(peer)
	if err != nil {
		return nil, fmt.Errorf("deriving: %v: %w", err, hsm.ErrInput)
	}
	return z, nil
}

// MAC implements [hsm.Token].
func (t *Token) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if err := border.Data(data); err != nil {
		return nil, err
	}
	e, err := t.find(ctx, key, hsm.MACKey)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, e.secret)
	mac.Write(data)
	return mac.Sum(nil), nil
}

// Import implements [hsm.Token].
func (t *Token) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	if err := border.Import(i); err != nil {
		return nil, err
	}
	wrap, err := t.find(ctx, i.Wrap, hsm.WrapKey)
	if err != nil {
		return nil, err
	}
	z, err := t.Derive(ctx, i.Enrol, i.Ephemeral)
	if err != nil {
		return nil, err
	}
	secret, err := kwp.Open(z, i)
	if err != nil {
		return nil, err
	}
	return kwp.Wrap(wrap.secret, secret)
}

// MACWrapped implements [hsm.Token].
func (t *Token) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	if err := border.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	e, err := t.find(ctx, wrap, hsm.WrapKey)
	if err != nil {
		return nil, err
	}
	secret, err := kwp.Unwrap(e.secret, wrapped)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(data)
	return mac.Sum(nil), nil
}

// Generate implements [hsm.Token].
func (t *Token) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := border.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	if err := ctx.Err(); err != nil {
		return hsm.Key{}, fmt.Errorf("generating key: %w", err)
	}
	e, err := newEntry(spec)
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key: %v: %w", err, hsm.ErrUnavailable)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.keys {
		if k.Label == spec.Label {
			return hsm.Key{}, fmt.Errorf("generating key %q: %w", spec.Label, hsm.ErrExists)
		}
	}
	t.keys[e.ID] = e
	return e.copy(), nil
}

// Keys implements [hsm.Token]; the keys are sorted by label.
func (t *Token) Keys(ctx context.Context) ([]hsm.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	keys := make([]hsm.Key, 0, len(t.keys))
	for _, e := range t.keys {
		keys = append(keys, e.copy())
	}
	slices.SortFunc(keys, func(a, b hsm.Key) int { return cmp.Compare(a.Label, b.Label) })
	return keys, nil
}

func (t *Token) find(ctx context.Context, id hsm.KeyID, usage hsm.Usage) (entry, error) {
	if err := ctx.Err(); err != nil {
		return entry{}, fmt.Errorf("key %s: %w", id, err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	e, ok := t.keys[id]
	if !ok {
		return entry{}, fmt.Errorf("key %s: %w", id, hsm.ErrKey)
	}
	if e.Usage != usage {
		return entry{}, fmt.Errorf("key %s is for %s, not %s: %w", id, e.Usage, usage, hsm.ErrKey)
	}
	return e, nil
}

func newEntry(spec hsm.KeySpec) (e entry, err error) {
	e.Label, e.Usage = spec.Label, spec.Usage
	switch spec.Usage {
	case hsm.SignP256, hsm.DeriveP256:
		if e.ecdh, err = ecdh.P256().GenerateKey(rand.Reader); err != nil {
			return e, err
		}
		e.Public = e.ecdh.PublicKey().Bytes()
		if e.ID, err = border.KeyID(e.Public); err != nil {
			return e, err
		}
		e.signer, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), e.ecdh.Bytes())
	default:
		e.secret = make([]byte, border.SecretLen)
		_, _ = rand.Read(e.secret) // never fails, see crypto/rand.Read
		_, _ = rand.Read(e.ID[:])
	}
	return e, err
}

func (e entry) copy() hsm.Key {
	k := e.Key
	k.Public = slices.Clone(k.Public)
	return k
}
