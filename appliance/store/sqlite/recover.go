package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	lib "modernc.org/sqlite/lib"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
	"countersign/protocol"
)

// Recover implements [store.Store].
func (s *database) Recover(ctx context.Context, r store.Recovered, rec audit.Record) error {
	return s.change(ctx, "recovering", rec, func(t *txn) error {
		kinds := []head.Kind{head.Keys, head.Settings, head.Policies, head.Invitations}
		err := t.move(kinds, func(h *head.Head) error {
			h.Raise(r)
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
		return t.endPending(r)
	})
}

// endInvitations ends the open invitations. A row that does not fit its seal is left alone; it
// enrols no party.
func (t *txn) endInvitations(r store.Recovered) error {
	all, err := unused(t, 0)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := t.putInvitation(r.Expire(i)); err != nil {
			return err
		}
	}
	return t.putOpenSet(t.openSet().Far())
}

// endPending denies the decisions that wait. A row that does not fit its seal is left alone.
func (t *txn) endPending(r store.Recovered) error {
	all, err := collect(t, scanDecision(t), `SELECT s.ref, c.id, `+decisionColumns+` FROM decision s JOIN client c ON c.ref = s.client
		WHERE s.result = ? AND s.final_result IS NULL`, int64(protocol.ResultPending))
	if err != nil {
		return err
	}
	seals := t.verifier().seals
	for _, w := range all {
		if w.Err != nil || seals.Forgotten(w.Record, w.Seal) || seals.Check(w.Record, w.Seal) != nil {
			continue
		}
		if err := t.putFinal(w.Ref, w.Record.(store.Kept), r.Deny()); err != nil {
			return err
		}
	}
	return nil
}

// copySuffix names the file in which a copy is made. Only an interrupted copy keeps its name, and
// the next Open removes it.
const copySuffix = ".copy"

// Copy implements [store.Store] with VACUUM INTO (SQLite) in a transaction that reads. The copy
// needs as much disk space as the database.
func (s *database) Copy(ctx context.Context) (store.Copy, error) {
	path := s.path + copySuffix
	// Created here, so that it never has another mode; SQLite accepts an empty file.
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

// Check reads a copy of a store from beginning to end with PRAGMA integrity_check and
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

// newest returns the last audit record of a store.
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

// salvaged lists the tables that Salvage copies, whose records are verified one by one, with the
// statement that copies a row.
var salvaged = []struct {
	table sealedTable
	copy  string
}{
	{clientTable, `INSERT INTO client SELECT * FROM old.client WHERE ref = ?`},
	{restraintTable, `INSERT INTO restraint SELECT * FROM old.restraint WHERE client = ?`},
	{deviceTable, `INSERT INTO device SELECT * FROM old.device WHERE ref = ?`},
	{allDecisions, `INSERT INTO decision SELECT * FROM old.decision WHERE ref = ?`},
}

// Salvage creates a store at path from another one whose head cannot be verified. The new store
// gets this trust, and the clients, devices and decisions whose seals verify. It does not get
// administrators, change requests and invitations, which only the head can vouch for. Audit records
// are copied unverified. Salvage returns an error for each row that it left behind. The new store
// is closed.
func Salvage(ctx context.Context, from, path string, seals *store.Seals, trust store.Trust, rec audit.Record) (left []error, err error) {
	s, err := Open(ctx, Config{Path: path})
	if err != nil {
		return nil, err
	}
	err = s.Unseal(ctx, seals, nil)
	if err == nil {
		err = s.AddTrust(ctx, trust, rec)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	left, err = salvage(ctx, from, path, seals)
	if err != nil {
		return nil, fmt.Errorf("salvaging %s: %w", from, unavailable(err))
	}
	return left, nil
}

func salvage(ctx context.Context, from, path string, seals *store.Seals) (left []error, err error) {
	old, err := sql.Open("sqlite", dsn(from, "ro"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	read, err := old.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Rollback() }() // nothing was written
	db, err := sql.Open("sqlite", dsn(path, "rw"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1) // the other database is attached to one connection
	if _, err := db.ExecContext(ctx, `ATTACH DATABASE ? AS old`, from); err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	for _, t := range salvaged {
		err := eachRow(snapshot{ctx: ctx, tx: read, vault: &vault{seals: seals}}, t.table, func(r sealedRow) error {
			if r.Err == nil {
				r.Err = seals.Check(r.Record, r.Seal)
			}
			if errors.Is(r.Err, store.ErrForged) {
				left = append(left, r.Err)
				return nil
			}
			if r.Err == nil {
				_, r.Err = tx.ExecContext(ctx, t.copy, r.Ref)
			}
			if resultCode(r.Err)&0xff == lib.SQLITE_CONSTRAINT { // the row is there twice, or its client is missing
				left, r.Err = append(left, fmt.Errorf("row %d of %s has no place: %w", r.Ref, t.table.name, r.Err)), nil
			}
			return r.Err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.table.name, err)
		}
	}
	// A client without a restraint is not copied.
	for _, statement := range []string{
		`DELETE FROM decision WHERE client NOT IN (SELECT client FROM restraint)`,
		`DELETE FROM client WHERE ref NOT IN (SELECT client FROM restraint)`,
		`INSERT INTO record (at_us, kind, subject, salt, body) SELECT at_us, kind, subject, salt, body FROM old.record ORDER BY sequence`,
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	return left, tx.Commit()
}
