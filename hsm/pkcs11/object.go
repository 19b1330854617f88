package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// object is a key with the handle that uses it: the private half of a pair, or
// the secret key.
type object struct {
	hsm.Key
	handle pkcs11.ObjectHandle
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

// use runs f with the key, resolved at its first use and once more when its
// handle went stale.
func (t *Token) use(ctx context.Context, key need, f func(*session, object) error) error {
	return t.useAll(ctx, []need{key}, func(s *session, o []object) error { return f(s, o[0]) })
}

// useAll is use with several keys, of which the first names the call in errors.
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
			return t.gone(ctx, failed, err)
		}
	}
	return t.run(ctx, keys[0].id, func(s *session) error { return f(s, found) })
}

// gone is the error of a key that was stale and then not to be resolved. While
// there are others it was destroyed; a token that had keys and no longer has any
// is a lost token: SoftHSM without its directory answers like this.
func (t *Token) gone(ctx context.Context, stale, err error) error {
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

// lookUp answers from the cache. Unknown keys are asked for on the token each
// time: another process may have made them since.
func (t *Token) lookUp(ctx context.Context, id hsm.KeyID) (object, error) {
	t.mu.RLock()
	o, ok := t.keys[id]
	t.mu.RUnlock()
	if ok {
		return o, nil
	}
	return t.resolve(ctx, id)
}

// resolve finds one key by CKA_ID and keeps it. Two keys with one CKA_ID are
// refused, for it cannot be known which was meant.
func (t *Token) resolve(ctx context.Context, id hsm.KeyID) (object, error) {
	var found []object
	err := t.run(ctx, id, func(s *session) (err error) {
		found, err = t.read(s, pkcs11.NewAttribute(pkcs11.CKA_ID, id[:]))
		return err
	})
	if err != nil {
		return object{}, err
	}
	if len(found) != 1 {
		return object{}, fmt.Errorf("%d keys on token %s have id %s: %w", len(found), t.label, id, hsm.ErrKey)
	}
	t.mu.Lock()
	t.keys[id] = found[0]
	t.mu.Unlock()
	return found[0], nil
}

// Keys implements [hsm.Token], reading the token and not the cache.
func (t *Token) Keys(ctx context.Context) ([]hsm.Key, error) {
	var found []object
	err := t.run(ctx, hsm.KeyID{}, func(s *session) (err error) {
		found, err = t.read(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	fresh, twice := map[hsm.KeyID]object{}, map[hsm.KeyID]bool{}
	for _, o := range found {
		_, seen := fresh[o.ID]
		twice[o.ID] = seen
		fresh[o.ID] = o
	}
	keys := make([]hsm.Key, 0, len(fresh))
	for _, o := range found {
		if twice[o.ID] {
			t.log.Warn("two keys with one id are not used", "key", o.ID)
			delete(fresh, o.ID)
			continue
		}
		keys = append(keys, o.Key)
	}
	return keys, t.remember(fresh)
}

// remember replaces the cache. All keys gone at once means the token is.
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
