package worker

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// book is what is known of the token's keys, for verifying what the token does
// with them. A public key is pinned by its id, which is a hash of it.
type book struct {
	mu   sync.RWMutex // guards what follows
	keys map[hsm.KeyID]hsm.Key
	macs map[hsm.KeyID][]byte // the canary's MAC, once two answers agreed
}

// learn replaces what is known by what a token listed. It returns the keys that
// were there before and are no longer.
func (b *book) learn(keys []hsm.Key) (gone []hsm.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.keys
	b.keys = make(map[hsm.KeyID]hsm.Key, len(keys))
	for _, k := range keys {
		b.keys[k.ID] = k
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
		b.keys = map[hsm.KeyID]hsm.Key{}
	}
	b.keys[k.ID] = k
}

func (b *book) find(id hsm.KeyID) (hsm.Key, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	k, ok := b.keys[id]
	return k, ok
}

// testable are the keys whose use can be verified from outside, in one order.
func (b *book) testable() (keys []hsm.Key) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, k := range b.keys {
		if k.Public != nil || k.Usage == hsm.MACKey {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b hsm.Key) int { return slices.Compare(a.ID[:], b.ID[:]) })
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

// key is one that is to be verified against, asked for on the token when it is
// not known: another process may have made it since.
func (p *Pool) key(ctx context.Context, id hsm.KeyID) (hsm.Key, error) {
	if k, ok := p.book.find(id); ok {
		return k, nil
	}
	if _, err := p.Keys(ctx); err != nil {
		return hsm.Key{}, err
	}
	k, ok := p.book.find(id)
	if !ok {
		return k, fmt.Errorf("key %s: %w", id, hsm.ErrKey)
	}
	return k, nil
}

// canaryText begins what canaries sign and authenticate, so that it is nothing
// that any protocol here gives a meaning to.
const canaryText = "countersign canary v1"

// lane is a worker's lane with how long a canary on it may take.
type lane struct {
	*link
	limit, overdue time.Duration // to give up, to kill the worker
}

// test lets a worker use a key and verifies what comes of it. An answer that is
// wrong is [hsm.ErrGarbled].
func (p *Pool) test(ctx context.Context, l lane, k hsm.Key) error {
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // never fails, see crypto/rand.Read
	input := append([]byte(canaryText), salt[:]...)
	switch k.Usage {
	case hsm.DeriveP256:
		return p.testDerive(ctx, l, k)
	case hsm.MACKey:
		return p.testMAC(ctx, l, k)
	default:
		digest := sha256.Sum256(input)
		q := wire.Request{Op: wire.Sign, Key: k.ID, Payload: digest[:]}
		out, err := l.call(ctx, q)
		if err != nil {
			return err
		}
		return verify(k, digest[:], out)
	}
}

// testDerive compares with the other half of the agreement, made here.
func (p *Pool) testDerive(ctx context.Context, l lane, k hsm.Key) error {
	public, err := point(k)
	if err != nil {
		return err
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	want, err := ephemeral.ECDH(public)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	got, err := l.call(ctx, wire.Request{Op: wire.Derive, Key: k.ID, Payload: ephemeral.PublicKey().Bytes()})
	if err != nil {
		return err
	}
	if !hmac.Equal(got, want) {
		return fmt.Errorf("key %s derived another secret: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}

// testMAC holds a key to what it gave before, by whatever worker.
func (p *Pool) testMAC(ctx context.Context, l lane, k hsm.Key) error {
	q := wire.Request{Op: wire.MAC, Key: k.ID, Payload: []byte(canaryText)}
	first, err := l.call(ctx, q)
	if err != nil {
		return err
	}
	second, err := l.call(ctx, q)
	if err != nil {
		return err
	}
	if !p.book.agreed(k.ID, first, second) {
		return fmt.Errorf("key %s gave another MAC: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}

// call is one call on the lane, which waits for no other.
func (l lane) call(ctx context.Context, q wire.Request) ([]byte, error) {
	now := time.Now()
	q.Deadline = wire.Now() + int64(l.limit)
	answer, err := l.do(ctx, q, patience{hedge: now.Add(l.limit), deadline: now.Add(l.limit), overdue: now.Add(l.overdue)})
	if err != nil {
		return nil, fmt.Errorf("canary: %s: %w", q.Op, err)
	}
	return answer.Payload, nil
}
