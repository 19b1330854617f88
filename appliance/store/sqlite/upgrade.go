package sqlite

import (
	"context"
	"fmt"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
)

// Upgrade implements [store.Sealing]. No table has changed since schema 8: it writes the manifest of
// this schema, and the numbers that SQLite and goose keep.
func (s *database) Upgrade(ctx context.Context, rec audit.Record) error {
	const doing = "upgrading the store"
	v, err := s.unsealed()
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err = s.change(ctx, doing, rec, func(t *txn) error {
		if v.upgraded.Load() {
			return errUnchanged
		}
		schema, err := ours(ctx, t)
		if err != nil {
			return err
		}
		for _, statement := range []string{
			fmt.Sprintf("PRAGMA user_version = %d", schemaVersion),
			fmt.Sprintf("INSERT INTO goose_db_version (version_id, is_applied) VALUES (%d, 1)", schemaVersion),
		} {
			if _, err := t.exec(statement); err != nil {
				return err
			}
		}
		return t.move([]head.Kind{head.Settings}, func(*head.Head) error {
			return t.putSettings(map[string][]byte{schemaSetting: manifest(schema)})
		})
	})
	if err == nil {
		v.upgraded.Store(true)
	}
	return err
}

// Schema implements [store.Sealing].
func (s *database) Schema() (stored, upgraded int, err error) {
	v, err := s.unsealed()
	switch {
	case err != nil:
		return 0, 0, err
	case v.upgraded.Load():
		stored = max(v.stored, schemaVersion)
		return stored, stored, nil
	}
	return v.stored, schemaVersion, nil
}

// upgradedFor returns an error if a restraint has sums and the store is not upgraded: an earlier release would misread
// them.
func (t *txn) upgradedFor(r store.Restraint) error {
	if len(r.Sums) == 0 || t.verifier().upgraded.Load() {
		return nil
	}
	return fmt.Errorf("%w: the store was not upgraded to this release", store.ErrUnavailable)
}
