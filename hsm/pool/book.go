package pool

import (
	"context"
	"crypto"
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"
	"sync"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// pinned is a key with its public half, which its id is a hash of.
type pinned struct {
	hsm.Key
	public crypto.PublicKey // nil of a secret key
}

// verify holds a signature to the key. One that does not verify is
// [hsm.ErrGarbled].
func (k pinned) verify(alg hsm.Algorithm, input, sig []byte) error {
	err := check.Verify(k.public, alg, input, sig)
	if errors.Is(err, check.ErrSignature) {
		return fmt.Errorf("by %s: %v: %w", k.Label, err, hsm.ErrGarbled)
	}
	return err
}

// book is what is known of the token's keys, for verifying what the token does
// with them. A public key is pinned by its id, which is a hash of it.
type book struct {
	mu   sync.RWMutex // guards what follows
	keys map[hsm.KeyID]pinned
	macs map[hsm.KeyID][]byte // the canary's MAC, once two answers agreed
}

// learn replaces what is known by what a token listed. It returns the keys that
// were there before and are no longer.
func (b *book) learn(keys []hsm.Key) (gone []pinned) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.keys
	b.keys = make(map[hsm.KeyID]pinned, len(keys))
	for _, k := range keys {
		b.addLocked(k)
	}
	for id, k := range before {
		if _, there := b.keys[id]; !there {
			gone = append(gone, k)
		}
	}
	return gone
}

// empty tells that no worker has listed the token's keys yet.
func (b *book) empty() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.keys == nil
}

// add is a key that was just made.
func (b *book) add(k hsm.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys == nil {
		b.keys = map[hsm.KeyID]pinned{}
	}
	b.addLocked(k)
}

// addLocked leaves out a pair whose public key is not the one that its id names.
func (b *book) addLocked(k hsm.Key) {
	p := pinned{Key: k}
	if k.Public != nil {
		public, id, err := check.ParsePublic(k.Public)
		if err != nil || id != k.ID {
			return
		}
		p.public = public
	}
	b.keys[k.ID] = p
}

// forget is a key that was just destroyed.
func (b *book) forget(id hsm.KeyID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.keys, id)
}

func (b *book) find(id hsm.KeyID) (pinned, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	k, ok := b.keys[id]
	return k, ok
}

// testable are the keys whose use can be verified from outside, in one order.
func (b *book) testable() (keys []pinned) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, k := range b.keys {
		if k.Public != nil || k.Usage == hsm.MACKey {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b pinned) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return keys
}

// agreed tells whether mac is what this key gave before. The first two answers
// that are equal are what later ones are held to.
func (b *book) agreed(id hsm.KeyID, first, second []byte) bool {
	if !hmac.Equal(first, second) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.macs == nil {
		b.macs = map[hsm.KeyID][]byte{}
	}
	if known, ok := b.macs[id]; ok {
		return hmac.Equal(known, first)
	}
	b.macs[id] = slices.Clone(first)
	return true
}

// pinned is the key that is to be verified against, asked for on the token when it
// is not known: another process may have made it since.
func (p *Pool) pinned(ctx context.Context, id hsm.KeyID) (pinned, error) {
	if k, ok := p.book.find(id); ok {
		return k, nil
	}
	if _, err := p.Keys(ctx); err != nil {
		return pinned{}, err
	}
	k, ok := p.book.find(id)
	if !ok {
		return k, fmt.Errorf("key %s: %w", id, hsm.ErrKey)
	}
	return k, nil
}
