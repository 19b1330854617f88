package pool

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// cachedKey is a key with its public half, whose hash is the key's id.
type cachedKey struct {
	hsm.Key
	public crypto.PublicKey // nil for a secret key
}

// verify returns [hsm.ErrGarbled] if a signature does not verify with the key.
func (k cachedKey) verify(alg hsm.Algorithm, input, sig []byte) error {
	err := check.Verify(k.public, alg, input, sig)
	if errors.Is(err, check.ErrSignature) {
		return fmt.Errorf("by %s: %v: %w", k.Label, err, hsm.ErrGarbled)
	}
	return err
}

func (k cachedKey) point() (*ecdh.PublicKey, error) {
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return public.ECDH()
	case *ecdh.PublicKey:
		return public, nil
	}
	return nil, fmt.Errorf("key %s is a %T: %w", k.Label, k.public, hsm.ErrKey)
}

// keyCache holds the token's keys, for verifying answers. The id of a pair is the hash of
// its public key, so a wrong public key is never stored.
type keyCache struct {
	mu   sync.RWMutex // guards the fields below
	keys map[hsm.KeyID]cachedKey
	macs map[hsm.KeyID][]byte // the canary's MAC, once two answers agreed
}

// replace stores the keys that a token listed. It returns the keys that were known before
// and are not listed.
func (b *keyCache) replace(keys []hsm.Key) (gone []cachedKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.keys
	b.keys = make(map[hsm.KeyID]cachedKey, len(keys))
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

// empty reports that no worker has listed the token's keys yet.
func (b *keyCache) empty() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.keys == nil
}

func (b *keyCache) add(k hsm.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys == nil {
		b.keys = map[hsm.KeyID]cachedKey{}
	}
	b.addLocked(k)
}

// addLocked skips a pair whose public key does not fit its id.
func (b *keyCache) addLocked(k hsm.Key) {
	c := cachedKey{Key: k}
	if k.Public != nil {
		public, id, err := check.ParsePublic(k.Public)
		if err != nil || id != k.ID {
			return
		}
		c.public = public
	}
	b.keys[k.ID] = c
}

func (b *keyCache) remove(id hsm.KeyID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.keys, id)
}

func (b *keyCache) find(id hsm.KeyID) (cachedKey, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	k, ok := b.keys[id]
	return k, ok
}

// testable returns the keys of the appliance, "name@version", whose use can be verified from
// outside, ordered by id.
func (b *keyCache) testable() (keys []cachedKey) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, k := range b.keys {
		if (k.Public != nil || k.Usage == hsm.MACKey) && k.Versioned() {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b cachedKey) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return keys
}

// sameMAC reports whether both MACs are equal, and equal to the key's earlier ones.
func (b *keyCache) sameMAC(id hsm.KeyID, first, second []byte) bool {
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

// knownPublics holds the public keys that callers know, see [Pool.Know].
type knownPublics struct {
	mu  sync.Mutex // guards all
	all map[hsm.KeyID][]byte
}

// add reports whether one of the public keys is new.
func (k *knownPublics) add(publics [][]byte) (news bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range publics {
		_, id, err := check.ParsePublic(p)
		if err != nil {
			return news, err
		}
		if _, there := k.all[id]; there {
			continue
		}
		if k.all == nil {
			k.all = map[hsm.KeyID][]byte{}
		}
		k.all[id], news = slices.Clone(p), true
	}
	return news, nil
}

func (k *knownPublics) list() [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.all))
}

// key returns a key to verify against. It lists the token's keys if the key is not known:
// another process may have made it.
func (p *Pool) key(ctx context.Context, id hsm.KeyID) (cachedKey, error) {
	if k, ok := p.keys.find(id); ok {
		return k, nil
	}
	if _, err := p.Keys(ctx); err != nil {
		return cachedKey{}, err
	}
	k, ok := p.keys.find(id)
	if !ok {
		return k, fmt.Errorf("key %s: %w", id, hsm.ErrKey)
	}
	return k, nil
}
