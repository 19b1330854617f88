package pkcs11

import (
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// object is a key with the handle of its private half, or of the secret key.
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

// resolve finds one key by CKA_ID and caches it. It refuses two keys with one CKA_ID,
// because either may be the right one.
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

// batch is the number of handles that one C_FindObjects returns.
const batch = 256

// read returns the keys on the token that match the attributes and that the appliance can
// use. It skips all other objects.
func (t *Token) read(s *session, match ...*pkcs11.Attribute) ([]object, error) {
	publics, err := t.publics(s, match)
	if err != nil {
		return nil, err
	}
	var keys []object
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
		handles, err := t.find(s, class, match)
		if err != nil {
			return nil, err
		}
		for _, h := range handles {
			o, ours, err := t.describe(s, h, class, publics)
			if err != nil {
				return nil, err
			}
			if ours {
				keys = append(keys, o)
			}
		}
	}
	return keys, nil
}

// find lists token objects of a class.
func (t *Token) find(s *session, class uint, match []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	template := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}, match...)
	return t.findAll(s, template)
}

func (t *Token) findAll(s *session, template []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	if err := t.ctx.FindObjectsInit(s.handle, template); err != nil {
		return nil, at("C_FindObjectsInit", err)
	}
	for {
		some, _, err := t.ctx.FindObjects(s.handle, batch)
		if err != nil {
			_ = t.ctx.FindObjectsFinal(s.handle)
			return nil, at("C_FindObjects", err)
		}
		if len(some) == 0 {
			return all, at("C_FindObjectsFinal", t.ctx.FindObjectsFinal(s.handle))
		}
		all = append(all, some...)
	}
}

// publics reads the public keys whose CKA_ID is their hash. Each key pair of the appliance
// has exactly one.
func (t *Token) publics(s *session, match []*pkcs11.Attribute) (map[hsm.KeyID]publicKey, error) {
	handles, err := t.find(s, pkcs11.CKO_PUBLIC_KEY, match)
	if err != nil {
		return nil, err
	}
	publics := map[hsm.KeyID]publicKey{}
	for _, h := range handles {
		a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			return nil, err
		}
		if !ok || len(a[0]) != len(hsm.KeyID{}) {
			continue
		}
		p, ok, err := t.publicOf(s, h, ulong(a[1]))
		if err != nil {
			return nil, err
		}
		if ok && string(a[0]) == string(p.id[:]) {
			publics[p.id] = p
		}
	}
	return publics, nil
}

// describe reads one private or secret key. It returns false if it is not one of the
// appliance's.
func (t *Token) describe(s *session, h pkcs11.ObjectHandle, class uint, publics map[hsm.KeyID]publicKey) (o object, ours bool, err error) {
	a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_KEY_TYPE,
		pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE)
	if err != nil || !ok || len(a[0]) != len(o.ID) || !truth(a[3]) || truth(a[4]) {
		return o, false, err
	}
	o.handle, o.Label = h, string(a[1])
	copy(o.ID[:], a[0])
	var public publicKey
	if class == pkcs11.CKO_PRIVATE_KEY {
		if public, ok = publics[o.ID]; !ok {
			return o, false, nil
		}
		o.Public = public.spki
	}
	o.Usage, ok, err = t.usage(s, h, keyFacts{class, ulong(a[2]), public.key})
	return o, ok, err
}

// keyFacts is the class, type and public key of a key whose usage is not known yet.
type keyFacts struct {
	class, keyType uint
	public         crypto.PublicKey // of a pair
}

func (k keyFacts) mayBe(usage hsm.Usage) bool {
	p := profiles[usage]
	return p.class == k.class && p.keyType == k.keyType && (!usage.Pair() || usage.Fits(k.public))
}

// usage reads what a key may do. A key with more than one usage is not one of the
// appliance's.
func (t *Token) usage(s *session, h pkcs11.ObjectHandle, key keyFacts) (hsm.Usage, bool, error) {
	for _, usage := range hsm.Usages() {
		if !key.mayBe(usage) {
			continue
		}
		p := profiles[usage]
		values, ok, err := t.attributes(s, h, p.usages...)
		if err != nil {
			return 0, false, err
		}
		for i, v := range values {
			ok = ok && truth(v) == p.allows(p.usages[i])
		}
		if ok {
			return usage, true, nil
		}
	}
	return 0, false, nil
}

// attributes reads several values. It returns false if the object does not have them all.
// Only a lost token or session is an error.
func (t *Token) attributes(s *session, h pkcs11.ObjectHandle, types ...uint) (values [][]byte, ok bool, err error) {
	template := make([]*pkcs11.Attribute, len(types))
	for i, typ := range types {
		template[i] = pkcs11.NewAttribute(typ, nil)
	}
	got, err := t.ctx.GetAttributeValue(s.handle, h, template)
	if err != nil {
		if c := classify(err); c == other || c == refind || c == input {
			return nil, false, nil
		}
		return nil, false, at("C_GetAttributeValue", err)
	}
	for _, a := range got {
		values = append(values, a.Value)
	}
	return values, true, nil
}

func truth(v []byte) bool { return len(v) == 1 && v[0] == 1 }

func ulong(v []byte) uint {
	if len(v) != 8 {
		return ^uint(0)
	}
	return uint(binary.NativeEndian.Uint64(v))
}
