package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"countersign/appliance/store"
	"countersign/protocol"
)

// Recover implements [store.Recovery].
func (s *Store) Recover(ctx context.Context, r store.Recovered, rec store.Record) error {
	return s.write(ctx, "recovering", func(t *txn) error {
		if err := t.changeKeys(r.KeyChange); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO policy (`+policyColumns+`)
			SELECT ?1, ?2, ?3, ?4 WHERE ?1 > (SELECT coalesce(max(version), 0) FROM policy)`,
			int64(r.Policy.Version), blob(r.Policy.Document), usec(r.Policy.ActivatedAt), behind(r.Policy.Change))
		if err != nil {
			return err
		}
		_, err = t.exec(`UPDATE decision SET final_result = ?, final_reason = ?, final_us = ? WHERE result = ? AND final_result IS NULL`,
			int64(protocol.ResultDenied), int64(protocol.CodeExpired), usec(r.At), int64(protocol.ResultPending))
		if err != nil {
			return err
		}
		_, err = t.exec(`UPDATE invitation SET expires_us = ?1 WHERE used_us IS NULL AND expires_us > ?1`, usec(r.At))
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// copySuffix is of the file in which a copy is made. Only one that was interrupted
// has a name for long, and is removed by the next Open.
const copySuffix = ".copy"

// Copy implements [store.Recovery] with VACUUM INTO (SQLite), in a transaction that
// reads. It takes as much room again beside the database.
func (s *Store) Copy(ctx context.Context) (store.Copy, error) {
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

func (s *Store) copyInto(ctx context.Context, c *store.Copy) error {
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
	if err := identify(ctx, db); err != nil {
		return point, err
	}
	var verdict string
	var orphans int
	err = errors.Join(
		db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict),
		db.QueryRowContext(ctx, "SELECT count(*) FROM pragma_foreign_key_check").Scan(&orphans),
	)
	if err == nil && (verdict != "ok" || orphans > 0) {
		err = fmt.Errorf("the database is damaged: %s, %d rows refer to none", verdict, orphans)
	}
	if err != nil {
		return point, unavailable(err)
	}
	return newest(ctx, db)
}

// newest is the last audit record of a store.
func newest(ctx context.Context, db *sql.DB) (point store.Point, err error) {
	var r store.Record
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
