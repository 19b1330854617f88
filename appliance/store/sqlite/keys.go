package sqlite

import (
	"context"
	"maps"
	"slices"

	"countersign/appliance/store"
)

const keyColumns = `name, version, id, public, not_before_us, not_after_us, cert, created_us,
	root, origin, tokens, revision, activated_us, retired_us, suspended_us, compromised_us, destroyed_us,
	sealed, sealed_for`

func scanKey(s scanner) (k store.Key, err error) {
	err = s.Scan(&k.Name, &k.Version, fixed(k.ID[:]), &k.Public,
		stamp{&k.NotBefore}, stamp{&k.NotAfter}, &k.Cert, stamp{&k.CreatedAt},
		&k.Root, &k.Origin, roles{&k.Tokens}, &k.Revision,
		stamp{&k.ActivatedAt}, stamp{&k.RetiredAt}, stamp{&k.SuspendedAt}, stamp{&k.CompromisedAt}, stamp{&k.DestroyedAt},
		&k.Sealed, &k.SealedFor)
	return k, err
}

// ListKeys implements [store.Keys].
func (s *Store) ListKeys(ctx context.Context) ([]store.Key, error) {
	q := query{doing: "listing keys", sql: `SELECT ` + keyColumns + ` FROM key ORDER BY name, version`}
	return list(ctx, s.r, q, scanKey)
}

func (t *txn) insertKey(k store.Key) error {
	tokens, err := rolesText(k.Tokens)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO key (`+keyColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.Name, int64(k.Version), k.ID[:], blob(k.Public), usec(k.NotBefore), usec(k.NotAfter), blob(k.Cert), usec(k.CreatedAt),
		int64(k.Root), string(k.Origin), tokens, int64(k.Revision),
		usec(k.ActivatedAt), usec(k.RetiredAt), usec(k.SuspendedAt), usec(k.CompromisedAt), usec(k.DestroyedAt),
		blob(k.Sealed), blob(k.SealedFor))
	return err
}

// updateKey writes what may change of a row whose revision is the one before. The
// copy of a key that is destroyed goes with it.
func (t *txn) updateKey(k store.Key) error {
	tokens, err := rolesText(k.Tokens)
	if err != nil {
		return err
	}
	n, err := t.exec(`UPDATE key SET not_before_us = ?, not_after_us = ?, cert = ?, root = ?, origin = ?, tokens = ?, revision = ?,
		activated_us = ?, retired_us = ?, suspended_us = ?, compromised_us = ?, destroyed_us = ?12,
		sealed = CASE WHEN ?12 IS NULL THEN sealed END, sealed_for = CASE WHEN ?12 IS NULL THEN sealed_for END
		WHERE name = ? AND version = ? AND revision = ?`,
		usec(k.NotBefore), usec(k.NotAfter), blob(k.Cert), int64(k.Root), string(k.Origin), tokens, int64(k.Revision),
		usec(k.ActivatedAt), usec(k.RetiredAt), usec(k.SuspendedAt), usec(k.CompromisedAt), usec(k.DestroyedAt),
		k.Name, int64(k.Version), int64(k.Revision-1))
	if err != nil || n == 1 {
		return err
	}
	var there int
	if err := t.row(`SELECT 1 FROM key WHERE name = ? AND version = ?`, k.Name, int64(k.Version)).Scan(&there); err != nil {
		return err
	}
	return store.ErrConflict
}

// AddTrust implements [store.Keys].
func (s *Store) AddTrust(ctx context.Context, trust store.Trust, rec store.Record) error {
	return s.write(ctx, "adding trust", func(t *txn) error {
		for _, k := range trust.Keys {
			if err := t.insertKey(k); err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(trust.Settings)) {
			if _, err := t.exec(`INSERT INTO setting (name, value) VALUES (?, ?)`, name, blob(trust.Settings[name])); err != nil {
				return err
			}
		}
		return t.append(rec)
	})
}

// ChangeKeys implements [store.Keys].
func (s *Store) ChangeKeys(ctx context.Context, c store.KeyChange, rec store.Record) error {
	return s.write(ctx, "changing keys", func(t *txn) error {
		if err := t.changeKeys(c); err != nil {
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
	for _, name := range slices.Sorted(maps.Keys(c.Settings)) {
		_, err := t.exec(`INSERT INTO setting (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2`,
			name, blob(c.Settings[name]))
		if err != nil {
			return err
		}
	}
	return nil
}
