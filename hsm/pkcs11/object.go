package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// object is a key with the handle of its private half, or of the secret key.
type object struct {
	hsm.Key
	handle pkcs11.ObjectHandle
	mark   []byte // CKA_ID, of any length; the id of a pair follows from its public half
	host   bool   // a wrap key that is an HMAC key, see hostcheck.go
	closed bool   // sensitive, not extractable, with one usage: a key that Keys lists
}

// need is a key and what a call uses it for: a usage, or an algorithm.
type need struct {
	id    hsm.KeyID
	usage hsm.Usage
	alg   hsm.Algorithm
}

func (n need) fits(u hsm.Usage) error {
	if n.alg != 0 {
		return check.Usage(u, n.alg)
	}
	if u != n.usage {
		return fmt.Errorf("key %s is for %s, not %s: %w", n.id, u, n.usage, hsm.ErrKey)
	}
	return nil
}

// use calls f with the key. It finds the key at its first use, and once more if its handle
// went stale.
func (t *Token) use(ctx context.Context, key need, f func(*session, object) error) error {
	return t.useAll(ctx, []need{key}, func(s *session, o []object) error { return f(s, o[0]) })
}

// useAll is use with several keys. Errors name the first.
func (t *Token) useAll(ctx context.Context, keys []need, f func(*session, []object) error) error {
	found := make([]object, len(keys))
	for i, k := range keys {
		o, err := t.lookUp(ctx, k.id)
		if err != nil {
			return err
		}
		if err := k.fits(o.Usage); err != nil {
			return err
		}
		found[i] = o
	}
	err := t.run(ctx, keys[0].id, func(s *session) error { return f(s, found) })
	var failed *callError
	if !errors.As(err, &failed) || failed.class != refind {
		return err
	}
	for i, k := range keys {
		if found[i], err = t.resolve(ctx, k.id); err != nil {
			return t.lostOrDestroyed(ctx, failed, err)
		}
	}
	return t.run(ctx, keys[0].id, func(s *session) error { return f(s, found) })
}

// lostOrDestroyed returns the error of a key that was stale and then not found. If other
// keys remain, it was destroyed. A token that had keys and now has none is lost: SoftHSM
// without its directory answers like this.
func (t *Token) lostOrDestroyed(ctx context.Context, stale, err error) error {
	if !errors.Is(err, hsm.ErrKey) {
		return err
	}
	if keys, unread := t.Keys(ctx); unread == nil && len(keys) > 0 {
		return err
	}
	lost := fmt.Errorf("%v, then %v: %w", stale, err, hsm.ErrUnavailable)
	t.die(lost)
	return lost
}

// lookUp answers from the cache. It asks the token for an unknown key each time, because
// another process may have made it.
func (t *Token) lookUp(ctx context.Context, id hsm.KeyID) (object, error) {
	t.mu.RLock()
	o, ok := t.keys[id]
	t.mu.RUnlock()
	if ok {
		return o, nil
	}
	return t.resolve(ctx, id)
}

// resolve finds one key and caches it. It looks at the objects with the CKA_ID that the key had
// when it was found before, and at all objects if it was not. It refuses two keys with one id,
// because either may be the right one.
func (t *Token) resolve(ctx context.Context, id hsm.KeyID) (object, error) {
	t.mu.RLock()
	known, ok := t.keys[id]
	t.mu.RUnlock()
	if ok && len(known.mark) > 0 {
		return t.resolveAmong(ctx, id, marked(known.mark))
	}
	return t.resolveAmong(ctx, id)
}

func marked(id []byte) *pkcs11.Attribute { return pkcs11.NewAttribute(pkcs11.CKA_ID, id) }

// resolveAmong is resolve among the objects that match.
func (t *Token) resolveAmong(ctx context.Context, id hsm.KeyID, match ...*pkcs11.Attribute) (object, error) {
	var found []object
	err := t.run(ctx, id, func(s *session) (err error) {
		found, err = t.read(s, match...)
		return err
	})
	if err != nil {
		return object{}, err
	}
	found = slices.DeleteFunc(found, func(o object) bool { return o.ID != id })
	if len(found) != 1 {
		return object{}, fmt.Errorf("%d keys on token %s have id %s: %w", len(found), t.label, id, hsm.ErrKey)
	}
	if found[0].closed { // the cache has the keys that Keys lists
		t.mu.Lock()
		t.keys[id] = found[0]
		t.mu.Unlock()
	}
	return found[0], nil
}

// Keys implements [hsm.Token]. It reads the token, not the cache.
func (t *Token) Keys(ctx context.Context) ([]hsm.Key, error) {
	var found []object
	err := t.run(ctx, hsm.KeyID{}, func(s *session) (err error) {
		found, err = t.read(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(o object) bool { return !o.closed })
	fresh := t.unique(found)
	keys := make([]hsm.Key, 0, len(fresh))
	for _, o := range found {
		if _, ok := fresh[o.ID]; ok {
			keys = append(keys, o.Key)
		}
	}
	return keys, t.remember(fresh)
}

// unique returns the objects by id, without those that share one.
func (t *Token) unique(found []object) map[hsm.KeyID]object {
	fresh, count := map[hsm.KeyID]object{}, map[hsm.KeyID]int{}
	for _, o := range found {
		count[o.ID]++
		fresh[o.ID] = o
	}
	for id, n := range count {
		if n > 1 {
			t.log.Warn("two keys with one id are not used", "key", id)
			delete(fresh, id)
		}
	}
	return fresh
}

// Foreign implements [hsm.Token].
func (t *Token) Foreign(ctx context.Context) (keys []hsm.Key, err error) {
	err = t.run(ctx, hsm.KeyID{}, func(s *session) error {
		found, err := t.read(s)
		keys = nil
		single := t.unique(found)
		for _, o := range found {
			if _, ok := single[o.ID]; ok && !o.closed {
				keys = append(keys, o.Key)
			}
		}
		return err
	})
	return keys, err
}

// remember replaces the cache. A token that lost all keys at once is lost.
func (t *Token) remember(fresh map[hsm.KeyID]object) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(fresh) == 0 && len(t.keys) > 0 {
		err := fmt.Errorf("token %s lost all of its %d keys: %w", t.label, len(t.keys), hsm.ErrUnavailable)
		t.die(err)
		return err
	}
	t.keys = fresh
	return nil
}
