package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

const keyColumns = `name, version, id, public, not_before_us, not_after_us, cert, created_us,
	root, origin, tokens, revision, activated_us, retired_us, suspended_us, compromised_us, destroyed_us,
	sealed, sealed_for, seal`

// keyRow is where the keyColumns are scanned to.
type keyRow struct {
	store.Key
	seal []byte
}

func scanKey(s scanner) (k keyRow, err error) {
	err = s.Scan(&k.Name, &k.Version, fixed(k.ID[:]), &k.Public,
		stamp{&k.NotBefore}, stamp{&k.NotAfter}, &k.Cert, stamp{&k.CreatedAt},
		&k.Root, &k.Origin, roles{&k.Tokens}, &k.Revision,
		stamp{&k.ActivatedAt}, stamp{&k.RetiredAt}, stamp{&k.SuspendedAt}, stamp{&k.CompromisedAt}, stamp{&k.DestroyedAt},
		&k.Sealed, &k.SealedFor, &k.seal)
	return k, err
}

// ListKeys implements [store.Store].
func (s *database) ListKeys(ctx context.Context) ([]store.Key, error) {
	all, err := listHanging[store.Key](ctx, s, "listing keys", store.HangingKeys)
	slices.SortFunc(all, func(a, b store.Key) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	return all, err
}

func (t *txn) insertKey(k store.Key) error {
	tokens, err := rolesText(k.Tokens)
	if err != nil {
		return err
	}
	seal, err := t.seal(k)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO key (`+keyColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.Name, int64(k.Version), k.ID[:], blob(k.Public), usec(k.NotBefore), usec(k.NotAfter), blob(k.Cert), usec(k.CreatedAt),
		int64(k.Root), string(k.Origin), tokens, int64(k.Revision),
		usec(k.ActivatedAt), usec(k.RetiredAt), usec(k.SuspendedAt), usec(k.CompromisedAt), usec(k.DestroyedAt),
		blob(k.Sealed), blob(k.SealedFor), seal)
	return err
}

// updateKey writes what may change of a row whose revision is the one before. The
// copy of a key that is destroyed goes with it.
func (t *txn) updateKey(k store.Key) error {
	old, err := find(t.hung[store.HangingKeys], k)
	if err != nil {
		return err
	}
	if old.Revision != k.Revision-1 {
		return store.ErrConflict
	}
	k.ID, k.Public, k.CreatedAt, k.Sealed, k.SealedFor = old.ID, old.Public, old.CreatedAt, old.Sealed, old.SealedFor
	if !k.DestroyedAt.IsZero() {
		k.Sealed, k.SealedFor = nil, nil
	}
	tokens, err := rolesText(k.Tokens)
	if err != nil {
		return err
	}
	seal, err := t.seal(k)
	if err != nil {
		return err
	}
	_, err = t.exec(`UPDATE key SET not_before_us = ?, not_after_us = ?, cert = ?, root = ?, origin = ?, tokens = ?, revision = ?,
		activated_us = ?, retired_us = ?, suspended_us = ?, compromised_us = ?, destroyed_us = ?,
		sealed = ?, sealed_for = ?, seal = ? WHERE name = ? AND version = ?`,
		usec(k.NotBefore), usec(k.NotAfter), blob(k.Cert), int64(k.Root), string(k.Origin), tokens, int64(k.Revision),
		usec(k.ActivatedAt), usec(k.RetiredAt), usec(k.SuspendedAt), usec(k.CompromisedAt), usec(k.DestroyedAt),
		blob(k.Sealed), blob(k.SealedFor), seal, k.Name, int64(k.Version))
	return err
}

// AddTrust implements [store.Store].
func (s *database) AddTrust(ctx context.Context, trust store.Trust, rec audit.Record) error {
	return s.write(ctx, "adding trust", func(t *txn) error {
		if _, err := t.head(); !errors.Is(err, sql.ErrNoRows) {
			if err == nil {
				err = store.ErrExists
			}
			return err
		}
		v, err := t.unsealed()
		if err != nil {
			return err
		}
		h := store.Head{MAC: v.seals.InForce()}
		if err := t.found(ctx, &h, trust); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// found writes the first head, and what hangs on it.
func (t *txn) found(ctx context.Context, h *store.Head, trust store.Trust) error {
	for _, k := range trust.Keys {
		if err := t.insertKey(k); err != nil {
			return err
		}
	}
	schema, err := ours(ctx, t)
	if err != nil {
		return err
	}
	if v := t.vault.Load(); v != nil {
		v.schema = schema
	}
	settings := maps.Clone(trust.Settings)
	if settings == nil {
		settings = map[string][]byte{}
	}
	settings[schemaSetting] = manifest(schema)
	if err := t.putSettings(settings); err != nil {
		return err
	}
	if trust.Policy.Version != 0 {
		if err := t.insertPolicy(h, trust.Policy); err != nil {
			return err
		}
	}
	return t.putHead(*h, store.AllHanging()...)
}

// ChangeKeys implements [store.Store].
func (s *database) ChangeKeys(ctx context.Context, c store.KeyChange, rec audit.Record) error {
	return s.write(ctx, "changing keys", func(t *txn) error {
		err := t.move([]store.Hanging{store.HangingKeys, store.HangingSettings}, func(h *store.Head) error {
			h.MAC = max(h.MAC, c.MAC)
			return t.changeKeys(c)
		})
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

func (t *txn) changeKeys(c store.KeyChange) error {
	for _, k := range c.Add {
		if err := t.insertKey(k); err != nil {
			return err
		}
	}
	for _, k := range c.Update {
		if err := t.updateKey(k); err != nil {
			return err
		}
	}
	return t.putSettings(c.Settings)
}

func (t *txn) putSettings(settings map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		seal, err := t.seal(store.Setting{Name: name, Value: settings[name]})
		if err != nil {
			return err
		}
		_, err = t.exec(`INSERT INTO setting (name, value, seal) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET value = ?2, seal = ?3`,
			name, blob(settings[name]), seal)
		if err != nil {
			return err
		}
	}
	return nil
}
