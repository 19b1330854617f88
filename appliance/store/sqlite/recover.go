package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"countersign/appliance/store"
	"countersign/protocol"
)

// Recover implements [store.Recovery].
func (s *Store) Recover(ctx context.Context, r store.Recovered, rec store.Record) error {
	return s.write(ctx, "recovering", func(t *txn) error {
		if err := t.changeKeys(r.KeyChange); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO policy (version, document, activated_us)
			SELECT ?1, ?2, ?3 WHERE ?1 > (SELECT coalesce(max(version), 0) FROM policy)`,
			int64(r.Policy.Version), blob(r.Policy.Document), usec(r.Policy.ActivatedAt))
		if err != nil {
			return err
		}
		_, err = t.exec(`UPDATE decision SET final_result = ?, final_reason = ?, final_us = ? WHERE result = ? AND final_result IS NULL`,
			int64(protocol.ResultDenied), int64(protocol.CodeExpired), usec(r.At), int64(protocol.ResultPending))
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// Point is the moment of which a copy of the store is.
type Point struct {
	Sequence uint64 // of its newest audit record, 0 for none
	At       time.Time
	Leaf     [32]byte // of that record
}

// Copy writes the store as of one moment into a new file of mode 0600, which must
// not exist, while it serves: VACUUM INTO, in a transaction that reads. The copy is
// durable and was checked when it returns; what an error leaves is removed.
func (s *Store) Copy(ctx context.Context, path string) (point Point, err error) {
	// It is made here, so that it never has another mode; SQLite takes an empty file.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return point, fmt.Errorf("copying the store: %w", unavailable(err))
	}
	if point, err = s.copyInto(ctx, f); err == nil {
		err = f.Close()
	} else {
		_ = f.Close() // the first error counts
	}
	if err != nil {
		_ = os.Remove(path) // it is no copy
		return point, fmt.Errorf("copying the store: %w", err)
	}
	return point, nil
}

func (s *Store) copyInto(ctx context.Context, f *os.File) (point Point, err error) {
	if _, err := s.r.db.ExecContext(ctx, "VACUUM INTO ?", f.Name()); err != nil {
		return point, unavailable(err)
	}
	if err := f.Sync(); err != nil {
		return point, unavailable(err)
	}
	if err := syncDir(filepath.Dir(f.Name())); err != nil {
		return point, err
	}
	return Check(ctx, f.Name())
}

// Check reads a copy of a store from beginning to end: PRAGMA integrity_check and
// foreign_key_check (SQLite). All its errors wrap [store.ErrUnavailable].
func Check(ctx context.Context, path string) (point Point, err error) {
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

func check(ctx context.Context, db *sql.DB) (point Point, err error) {
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
func newest(ctx context.Context, db *sql.DB) (point Point, err error) {
	var r store.Record
	err = db.QueryRowContext(ctx, `SELECT sequence, at_us, salt, body FROM record ORDER BY sequence DESC LIMIT 1`).
		Scan(&r.Sequence, stamp{&r.At}, fixed(r.Salt[:]), &r.Body)
	if errors.Is(err, sql.ErrNoRows) {
		return point, nil
	}
	if err != nil {
		return point, unavailable(err)
	}
	return Point{Sequence: r.Sequence, At: r.At, Leaf: r.Leaf()}, nil
}
