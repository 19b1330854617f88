package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"countersign/appliance/store"
)

// vault is what the store verifies its records by, once it is unsealed.
type vault struct {
	seals  *store.Seals
	anchor store.Anchor               // nil: none
	newest atomic.Pointer[store.Mark] // of the head that is durable; nil: none yet
	behind atomic.Bool                // the anchor is: the head moves no further

	// Of the writer alone.
	schema       map[object]string // that was verified; nil: the store was not founded yet
	foreign      bool              // another program changed it
	cookie, data int64             // PRAGMA schema_version and data_version
}

// mark is of the newest head that is durable, zero if there is none.
func (v *vault) mark() store.Mark {
	if m := v.newest.Load(); m != nil {
		return *m
	}
	return store.Mark{}
}

// catchUp lets the anchor follow the head. While it cannot, the head does not move, so that
// no more than one revision is ever without an anchor.
func (v *vault) catchUp() error {
	if v.anchor == nil || !v.behind.Load() {
		return nil
	}
	if err := v.anchor.Advance(v.mark()); err != nil {
		return unavailable(fmt.Errorf("the anchor cannot follow: %w", err))
	}
	v.behind.Store(false)
	return nil
}

// unsealed returns the vault, or [store.ErrSealed].
func (s *database) unsealed() (*vault, error) {
	if v := s.vault.Load(); v != nil {
		return v, nil
	}
	return nil, store.ErrSealed
}

func (t *txn) unsealed() (*vault, error) {
	if v := t.vault.Load(); v != nil {
		return v, nil
	}
	return nil, store.ErrSealed
}

// check verifies a record that a row was read as.
func (v *vault) check(r store.Sealed, seal []byte) error {
	return v.seals.Check(r, store.ParseSeal(seal))
}

// check verifies a record within the transaction.
func (t *txn) check(r store.Sealed, seal []byte) error {
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	return v.check(r, seal)
}

// seal makes the seal of a record that is about to be written.
func (t *txn) seal(r store.Sealed) ([]byte, error) {
	v, err := t.unsealed()
	if err != nil {
		return nil, err
	}
	seal, err := v.seals.Make(r)
	if err != nil {
		return nil, err
	}
	t.hangs(r, seal.Bytes())
	return seal.Bytes(), nil
}

// source is where rows are read from: the writer's transaction, or a snapshot.
type source interface {
	row(query string, args ...any) scanner
	rows(query string, args ...any) (*sql.Rows, error)
	verifier() *vault // nil: sealed
}

// snapshot is a transaction that only reads, for what takes more than one statement.
type snapshot struct {
	floor store.Mark // newest head that was durable before the snapshot
	ctx   context.Context
	tx    *sql.Tx
	vault *vault
}

func (s snapshot) verifier() *vault { return s.vault }
func (t *txn) verifier() *vault     { return t.vault.Load() }

func (s snapshot) row(query string, args ...any) scanner {
	return careful{s.tx.QueryRowContext(s.ctx, query, args...), s.vault, query}
}

func (s snapshot) rows(query string, args ...any) (*sql.Rows, error) {
	return s.tx.QueryContext(s.ctx, query, args...)
}

// read runs do on one snapshot of an unsealed store; doing names it in errors.
func (s *database) read(ctx context.Context, doing string, do func(snapshot, *vault) error) error {
	v, err := s.unsealed()
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	floor := v.mark() // before the snapshot, which may see a later one
	tx, err := s.r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return readError(ctx, doing, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return readError(ctx, doing, do(snapshot{floor, ctx, tx, v}, v))
}

// collect reads all rows of a query through scan.
func collect[T any](from source, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := from.rows(query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // read to the end, or failed already
	var all []T
	for rows.Next() {
		one, err := scan(careful{rows, from.verifier(), query})
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// head reads and verifies the head, which floor allows.
// A store that has none, and never had, is [sql.ErrNoRows].
func (v *vault) head(from source, floor store.Mark) (h store.Head, err error) {
	var body, seal []byte
	err = from.row(`SELECT body, seal FROM head WHERE name = 'head'`).Scan(&body, &seal)
	if errors.Is(err, sql.ErrNoRows) && floor.Revision > 0 {
		return h, v.seals.Report("the head is missing")
	}
	if err != nil {
		return h, err
	}
	if h, err = store.ParseHead(body); err != nil {
		return h, v.seals.Report("the head cannot be read")
	}
	if err := v.check(h, seal); err != nil {
		return h, err
	}
	if !floor.Allows(h) || h.MAC != store.ParseSeal(seal).Version {
		return h, v.seals.Report(fmt.Sprintf("the head has revision %d under mac@%d, and another of revision %d was there before", h.Revision, h.MAC, floor.Revision))
	}
	return h, nil
}
