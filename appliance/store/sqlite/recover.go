package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Recover implements [store.Store].
func (s *database) Recover(ctx context.Context, r store.Recovered, rec audit.Record) error {
	return s.write(ctx, "recovering", func(t *txn) error {
		kinds := []store.Hanging{store.HangingKeys, store.HangingSettings, store.HangingPolicies, store.HangingInvitations}
		err := t.move(kinds, func(h *store.Head) error {
			// Above every head of the host that was lost, which had moved less than once a microsecond.
			h.MAC, h.Revision = max(h.MAC, r.MAC), max(h.Revision, r.Revision, uint64(max(r.At.UnixMicro(), 0)))
			if err := t.changeKeys(r.KeyChange); err != nil {
				return err
			}
			if r.Policy.Version > h.Policy {
				if err := t.insertPolicy(h, r.Policy); err != nil {
					return err
				}
			}
			return t.endInvitations(r)
		})
		if err != nil {
			return err
		}
		if err := t.endPending(r); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// endInvitations ends those that are open, whatever clock they were made by. A row that
// does not fit its seal is left to itself: it is good for nothing.
func (t *txn) endInvitations(r store.Recovered) error {
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	all, err := collect(t, func(s scanner) (invitationRow, error) {
		i, err := scanInvitation(s)
		if errors.Is(err, store.ErrForged) {
			return invitationRow{}, nil
		}
		return i, err
	}, `SELECT `+invitationColumns+` FROM invitation WHERE used_us IS NULL`)
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.seal == nil || v.check(i.Invitation, i.seal) != nil {
			continue
		}
		for _, end := range []time.Time{store.Stamp(r.At), i.CreatedAt} {
			if end.Before(i.ExpiresAt) {
				i.ExpiresAt = end
			}
		}
		if err := t.putInvitation(i.Invitation); err != nil {
			return err
		}
	}
	return t.putOpenSet(store.OpenSet{Next: t.openSet().Next}.Far())
}

// endPending denies what waits, as expired. A row that does not fit its seal is left to
// itself.
func (t *txn) endPending(r store.Recovered) error {
	type waiting struct {
		ref int64
		id  protocol.ClientID
		*keptRow
	}
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	all, err := collect(t, func(s scanner) (w waiting, err error) {
		w.keptRow = &keptRow{}
		err = s.Scan(append([]any{&w.ref, fixed(w.id[:])}, w.dest()...)...)
		if errors.Is(err, store.ErrForged) {
			return waiting{}, nil
		}
		return w, err
	}, `SELECT s.ref, c.id, `+decisionColumns+` FROM decision s JOIN client c ON c.ref = s.client
		WHERE s.result = ? AND s.final_result IS NULL`, int64(protocol.ResultPending))
	if err != nil {
		return err
	}
	for _, w := range all {
		if w.keptRow == nil || w.open(v, w.id) != nil {
			continue
		}
		final := store.Final{Result: protocol.ResultDenied, Reason: protocol.CodeExpired, At: store.Stamp(r.At)}
		if err := t.putFinal(w.ref, w.Kept, final); err != nil {
			return err
		}
	}
	return nil
}

// copySuffix is of the file in which a copy is made. Only one that was interrupted
// has a name for long, and is removed by the next Open.
const copySuffix = ".copy"

// Copy implements [store.Recovery] with VACUUM INTO (SQLite), in a transaction that
// reads. It takes as much room again beside the database.
func (s *database) Copy(ctx context.Context) (store.Copy, error) {
	path := s.path + copySuffix
	// It is made here, so that it never has another mode; SQLite takes an empty file.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return store.Copy{}, fmt.Errorf("copying the store: %w", unavailable(err))
	}
	c := store.Copy{File: f}
	err = s.copyInto(ctx, &c)
	err = errors.Join(err, os.Remove(path))
	if err != nil {
		_ = f.Close() // the first error counts
		return store.Copy{}, fmt.Errorf("copying the store: %w", unavailable(err))
	}
	return c, nil
}

func (s *database) copyInto(ctx context.Context, c *store.Copy) error {
	if _, err := s.r.db.ExecContext(ctx, "VACUUM INTO ?", c.Name()); err != nil {
		return err
	}
	info, err := c.Stat()
	if err != nil {
		return err
	}
	c.Size = info.Size()
	c.Point, err = Check(ctx, c.Name())
	return err
}

// Check reads a copy of a store from beginning to end: PRAGMA integrity_check and
// foreign_key_check (SQLite). All its errors wrap [store.ErrUnavailable].
func Check(ctx context.Context, path string) (point store.Point, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return point, unavailable(err)
	}
	db, err := sql.Open("sqlite", dsn(path, "ro"))
	if err != nil {
		return point, unavailable(err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if point, err = check(ctx, db); err != nil {
		err = fmt.Errorf("checking %s: %w", path, err)
	}
	return point, err
}

func check(ctx context.Context, db *sql.DB) (point store.Point, err error) {
	if _, err := identify(ctx, db); err != nil {
		return point, err
	}
	var verdict string
	var orphans sql.NullString
	err = errors.Join(
		db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict),
		db.QueryRowContext(ctx, `SELECT group_concat(DISTINCT "table" || ' refers to ' || parent) FROM pragma_foreign_key_check`).Scan(&orphans),
	)
	if err == nil && (verdict != "ok" || orphans.Valid) {
		err = fmt.Errorf("the database is damaged: %s, rows that are missing: %s", verdict, cmp.Or(orphans.String, "none"))
	}
	if err != nil {
		return point, unavailable(err)
	}
	return newest(ctx, db)
}

// newest is the last audit record of a store.
func newest(ctx context.Context, db *sql.DB) (point store.Point, err error) {
	var r audit.Record
	err = db.QueryRowContext(ctx, `SELECT sequence, at_us, salt, body FROM record ORDER BY sequence DESC LIMIT 1`).
		Scan(&r.Sequence, stamp{&r.At}, fixed(r.Salt[:]), &r.Body)
	if errors.Is(err, sql.ErrNoRows) {
		return point, nil
	}
	if err != nil {
		return point, unavailable(err)
	}
	return store.Point{Sequence: r.Sequence, At: r.At, Leaf: r.Leaf()}, nil
}
