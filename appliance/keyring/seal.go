package keyring

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol/derive"
)

// Unseal asks the token for the keys of the seals, PROTOCOL.md §2.1, and unseals the store
// with them, once its roots are those that are pinned. Where to ask is what the rows of
// the mac keys say, which nothing has verified yet: a row that lies gives a key under
// which the head does not verify. Errors are those of [Verify], of the token and of
// [store.Sealing.Unseal].
func Unseal(ctx context.Context, token hsm.Token, s store.Sealing, seals *store.Seals, pins Pins) error {
	claims, err := s.Claims(ctx)
	if err != nil {
		return err
	}
	if err := Verify(claims, pins); err != nil {
		return err
	}
	labels, err := labelsOf(ctx, token)
	if err != nil {
		return err
	}
	for _, row := range claims.Keys {
		switch {
		case row.Name != MAC:
			continue
		case !row.DestroyedAt.IsZero():
			seals.Remove(row.Version)
			continue
		}
		if label, ok := labels[row.ID]; ok && label != Label(MAC, row.Version) { // a version that was given up, by another number
			return fmt.Errorf("the registry has key %x as %s, and the token as %s: %w", row.ID, Label(MAC, row.Version), label, store.ErrForged)
		}
		err := addSealKey(ctx, token, seals, Key{Key: row})
		if err != nil && !errors.Is(err, hsm.ErrKey) { // a key that is not there vouches for nothing
			return err
		}
	}
	if pins.Anchor == nil {
		return s.Unseal(ctx, seals, nil)
	}
	return s.Unseal(ctx, seals, pins.Anchor)
}

// labelsOf are the labels of the keys on the token.
func labelsOf(ctx context.Context, token hsm.Token) (map[hsm.KeyID]string, error) {
	keys, err := token.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the token's keys: %w", err)
	}
	labels := map[hsm.KeyID]string{}
	for _, k := range keys {
		labels[k.ID] = k.Label
	}
	return labels, nil
}

// addSealKey asks the token for the key of the seals of one version of mac, until two
// answers agree.
func addSealKey(ctx context.Context, token hsm.Token, seals *store.Seals, mac Key) error {
	key, err := agreed(func() ([]byte, error) { return token.MAC(ctx, mac.ID, derive.SealKeyInput()) })
	if err != nil {
		return fmt.Errorf("the key of the seals by %s: %w", mac.label(), err)
	}
	seals.Add(mac.Version, key, !mac.held())
	return nil
}

// Unsealed verifies records of a store that nothing has sealed yet, by the MACs that
// releases before the seals gave them.
type Unsealed struct {
	token hsm.Token
	macs  []Key
}

// ReadUnsealed holds what an unsealed store claims against pins, as [Unseal] does, and
// gives seals the keys of its versions of mac.
func ReadUnsealed(ctx context.Context, token hsm.Token, c store.Claims, seals *store.Seals, pins Pins) (*Unsealed, error) {
	if err := Verify(c, pins); err != nil {
		return nil, err
	}
	if err := SealKeys(ctx, token, c.Keys, seals); err != nil {
		return nil, err
	}
	u := &Unsealed{token: token}
	for _, row := range c.Keys {
		if k := (Key{Key: row}); k.Name == MAC && k.held() {
			u.macs = append(u.macs, k)
		}
	}
	return u, nil
}

// SealKeys gives seals the keys of the versions of mac among rows, and lets them use the
// newest that was activated.
func SealKeys(ctx context.Context, token hsm.Token, rows []store.Key, seals *store.Seals) error {
	for _, row := range rows {
		k := Key{Key: row}
		if k.Name != MAC || !k.DestroyedAt.IsZero() {
			continue
		}
		if err := addSealKey(ctx, token, seals, k); err != nil {
			return err
		}
	}
	newest := NewestMAC(rows)
	if newest == 0 {
		return fmt.Errorf("key %q: %w", MAC, ErrNoKey)
	}
	seals.Use(newest)
	return nil
}

// NewestMAC is the newest version of mac among rows that was activated and not given up,
// 0 if there is none: new seals are of that one.
func NewestMAC(rows []store.Key) (newest uint64) {
	for _, row := range rows {
		if k := (Key{Key: row}); k.Name == MAC && k.held() && !k.ActivatedAt.IsZero() {
			newest = max(newest, k.Version)
		}
	}
	return newest
}

// Fits reports whether a MAC is that of a record, under any version of mac that is
// accepted.
func (u *Unsealed) Fits(ctx context.Context, r derive.Record, mac []byte) (bool, error) {
	input := derive.RecordInput(r)
	for _, k := range u.macs {
		ask := func() ([]byte, error) { return u.token.MAC(ctx, k.ID, input) }
		again, err := ask()
		if err == nil && !hmac.Equal(again, mac) {
			again, err = agreed(ask, again)
		}
		if err != nil || hmac.Equal(again, mac) {
			return err == nil, err
		}
	}
	return false, nil
}

// Keep lets seals follow the registry, now and with each Reload: the key of a new version
// of mac is asked for, one that was given up vouches for what is over only, and one that
// was destroyed for nothing.
func (r *Keyring) Keep(ctx context.Context, seals *store.Seals) error {
	r.seals.Store(seals)
	return r.follow(ctx, r.live.Load())
}

// Seals are those that Keep was given.
func (r *Keyring) Seals() *store.Seals { return r.seals.Load() }

func (r *Keyring) follow(ctx context.Context, v *ring) error {
	seals := r.seals.Load()
	if seals == nil {
		return nil
	}
	for _, k := range v.keys[MAC] {
		held, _ := seals.Holds(k.Version)
		switch {
		case !k.DestroyedAt.IsZero():
			seals.Remove(k.Version)
		case held:
			seals.GiveUp(k.Version, !k.held())
		case k.OnToken:
			if err := addSealKey(ctx, r.token, seals, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// SealedUnder returns the version of mac under which new records are sealed once the plan
// is carried out.
func (r *Keyring) SealedUnder(p Plan) uint64 {
	var rows []store.Key
	for _, k := range r.live.Load().after(p).keys[MAC] {
		rows = append(rows, k.Key)
	}
	return NewestMAC(rows)
}
