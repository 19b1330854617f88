package keyuse

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol/derive"
)

// Unseal verifies the store's roots under the pins, asks the token for the keys of the
// seals, PROTOCOL.md §2.1, and unseals the store with them. The rows of the mac keys say
// which keys to ask for. Nothing has verified these rows yet, but a false row yields a
// key under which the head does not verify. Errors come from [Pins.Verify], the token and
// [store.Sealing.Unseal].
func Unseal(ctx context.Context, token hsm.Token, s store.Sealing, seals *store.Seals, pins Pins) error {
	claims, err := s.Claims(ctx)
	if err != nil {
		return err
	}
	if err := pins.Verify(claims); err != nil {
		return err
	}
	present, err := token.Keys(ctx)
	if err != nil {
		return fmt.Errorf("listing the token's keys: %w", err)
	}
	labels := map[hsm.KeyID]string{}
	for _, k := range present {
		labels[k.ID] = k.Label
	}
	for _, row := range claims.Keys {
		mac := keyring.Key{Key: row}
		switch label, ok := labels[row.ID]; {
		case row.Name != keyring.MAC:
		case !row.DestroyedAt.IsZero():
			seals.Remove(row.Version)
		case ok && label != mac.Label(): // a version that was given up, under another number
			return fmt.Errorf("the registry has key %x as %s, and the token as %s: %w", row.ID, mac.Label(), label, store.ErrForged)
		default:
			// A key that is missing vouches for nothing.
			if err := addSealKey(ctx, token, seals, mac); err != nil && !errors.Is(err, hsm.ErrKey) {
				return err
			}
		}
	}
	if pins.Anchor == nil {
		return s.Unseal(ctx, seals, nil)
	}
	return s.Unseal(ctx, seals, pins.Anchor)
}

// addSealKey asks the token for the seal key of one version of mac until two answers
// agree.
func addSealKey(ctx context.Context, token hsm.Token, seals *store.Seals, mac keyring.Key) error {
	key, err := agreed(func() ([]byte, error) { return token.MAC(ctx, mac.ID, derive.SealKeyInput()) })
	if err != nil {
		return fmt.Errorf("seal key of %s: %w", mac.Label(), err)
	}
	seals.Add(mac.Version, key, !mac.Held())
	return nil
}

// SealKeys adds the seal keys of the versions of mac among rows to seals and selects the
// newest activated one for new seals.
func SealKeys(ctx context.Context, token hsm.Token, rows []store.Key, seals *store.Seals) error {
	for _, row := range rows {
		if row.Name != keyring.MAC || !row.DestroyedAt.IsZero() {
			continue
		}
		if err := addSealKey(ctx, token, seals, keyring.Key{Key: row}); err != nil {
			return err
		}
	}
	newest := keyring.NewestMAC(rows)
	if newest == 0 {
		return fmt.Errorf("key %q: %w", keyring.MAC, keyring.ErrNoKey)
	}
	seals.Use(newest)
	return nil
}

// Keep makes seals follow the registry, now and at each Reload: a new version of mac adds
// its key, a version that was given up vouches only for ended records, and a destroyed one
// for nothing.
func (k *Keys) Keep(ctx context.Context, seals *store.Seals) error {
	k.seals.Store(seals)
	return k.follow(ctx, k.Ring())
}

// Seals returns the seals given to Keep.
func (k *Keys) Seals() *store.Seals { return k.seals.Load() }

func (k *Keys) follow(ctx context.Context, ring *keyring.Ring) error {
	seals := k.seals.Load()
	if seals == nil {
		return nil
	}
	for _, mac := range ring.Versions(keyring.MAC) {
		known, _ := seals.Holds(mac.Version)
		switch {
		case !mac.DestroyedAt.IsZero():
			seals.Remove(mac.Version)
		case known:
			seals.GiveUp(mac.Version, !mac.Held())
		case mac.OnToken:
			if err := addSealKey(ctx, k.token, seals, mac); err != nil {
				return err
			}
		}
	}
	return nil
}
