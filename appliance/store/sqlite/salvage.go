package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	lib "modernc.org/sqlite/lib"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// salvaged are the tables that Salvage copies rows of: those whose records are verified one
// by one. Each names its columns, and the one that Salvage finds a row by.
var salvaged = []struct {
	table sealedTable
	copy  string
}{
	{clientTable, `INSERT INTO client SELECT * FROM old.client WHERE ref = ?`},
	{restraintTable, `INSERT INTO restraint SELECT * FROM old.restraint WHERE client = ?`},
	{deviceTable, `INSERT INTO device SELECT * FROM old.device WHERE ref = ?`},
	{sealedTable{"decision", "true", readAllDecisions}, `INSERT INTO decision SELECT * FROM old.decision WHERE ref = ?`},
}

// Salvage makes a new store at path from one that nothing vouches for: with this trust,
// and with the clients, devices and decisions of the other whose seals verify. What hangs
// on its head does not come, since the head is not believed: administrators, change
// requests and invitations. Audit records come as they are. It returns what was left
// behind. The new store is closed.
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
	v := &vault{seals: seals}
	for _, t := range salvaged {
		err := eachRow(snapshot{ctx: ctx, tx: read, vault: v}, v, t.table, func(r sealedRow) error {
			if r.err == nil {
				r.err = v.check(r.record, r.seal)
			}
			if errors.Is(r.err, store.ErrForged) {
				left = append(left, r.err)
				return nil
			}
			if r.err == nil {
				_, r.err = tx.ExecContext(ctx, t.copy, r.ref)
			}
			if resultCode(r.err)&0xff == lib.SQLITE_CONSTRAINT { // it is there twice, or its client is not
				left, r.err = append(left, fmt.Errorf("row %d of %s has no place: %w", r.ref, t.table.name, r.err)), nil
			}
			return r.err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.table.name, err)
		}
	}
	// Of a client without a restraint nothing is good.
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

// eachRow reads a table from beginning to end, in batches.
func eachRow(from source, v *vault, t sealedTable, do func(sealedRow) error) error {
	for after := int64(math.MinInt64); ; {
		before := after
		rows, err := t.read(from, v, after, verifyBatch)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			after = r.ref
			if err := do(r); err != nil {
				return err
			}
		}
		if after <= before { // of a schema that is not ours, it would go on for ever
			return fmt.Errorf("rows of %s are out of order: %w", t.name, store.ErrForged)
		}
	}
}
