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
	seals    *store.Seals
	anchor   store.Anchor  // nil: none
	revision atomic.Uint64 // newest of the head that is durable
	schema   int64         // PRAGMA schema_version; of the writer alone
}

// unsealed returns the vault, or [store.ErrSealed].
func (s *Store) unsealed() (*vault, error) {
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
	return seal.Bytes(), err
}

// source is where rows are read from: the writer's transaction, or a snapshot.
type source interface {
	row(query string, args ...any) scanner
	rows(query string, args ...any) (*sql.Rows, error)
	verifier() *vault // nil: sealed
}

// snapshot is a transaction that only reads, for what takes more than one statement.
type snapshot struct {
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
func (s *Store) read(ctx context.Context, doing string, do func(snapshot, *vault) error) error {
	v, err := s.unsealed()
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	tx, err := s.r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return readError(ctx, doing, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return readError(ctx, doing, do(snapshot{ctx, tx, v}, v))
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

// head reads and verifies the head. floor is the least revision that it may have.
// A store that has none, and never had, is [sql.ErrNoRows].
func (v *vault) head(from source, floor uint64) (h store.Head, err error) {
	var body, seal []byte
	err = from.row(`SELECT body, seal FROM head WHERE name = 'head'`).Scan(&body, &seal)
	if errors.Is(err, sql.ErrNoRows) && floor > 0 {
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
	if h.Revision < floor || h.MAC != store.ParseSeal(seal).Version {
		return h, v.seals.Report(fmt.Sprintf("the head has revision %d under mac@%d, and revision %d was there before", h.Revision, h.MAC, floor))
	}
	return h, nil
}

// hangingSeals are the seals of a kind in the order of their keys.
var hangingSeals = map[store.Hanging]string{
	store.HangingKeys:        `SELECT seal FROM key ORDER BY name, version`,
	store.HangingSettings:    `SELECT seal FROM setting ORDER BY name`,
	store.HangingPolicies:    `SELECT seal FROM policy ORDER BY version`,
	store.HangingAdmins:      `SELECT seal FROM admin ORDER BY id`,
	store.HangingChanges:     `SELECT seal FROM change WHERE state IN ('open', 'taken') ORDER BY id`,
	store.HangingInvitations: `SELECT seal FROM head WHERE name = 'invitations'`,
}

func digest(from source, kind store.Hanging) (sum [32]byte, err error) {
	seals, err := collect(from, func(s scanner) (seal []byte, err error) {
		err = s.Scan(&seal)
		return seal, err
	}, hangingSeals[kind])
	return store.DigestOf(seals), err
}

// hangs verifies that the records of a kind are those that the head has.
func (v *vault) hangs(from source, h store.Head, kind store.Hanging) error {
	found, err := digest(from, kind)
	if err == nil && found != h.Digests[kind] {
		err = v.seals.Report(fmt.Sprintf("%s do not match the head: a record is missing, old or foreign", kind))
	}
	return err
}

// head is that of the transaction.
func (t *txn) head() (store.Head, error) {
	v, err := t.unsealed()
	if err != nil {
		return store.Head{}, err
	}
	return v.head(t, max(v.revision.Load(), t.moved.revision))
}

// hanging verifies records of kinds that hang on the head, and returns it.
func (t *txn) hanging(kinds ...store.Hanging) (store.Head, error) {
	h, err := t.head()
	if err != nil {
		return h, err
	}
	v, err := t.unsealed()
	for _, kind := range kinds {
		if err == nil {
			err = v.hangs(t, h, kind)
		}
	}
	return h, err
}

// move changes records that hang on the head, and the head with them. They are verified
// before.
func (t *txn) move(kinds []store.Hanging, do func(*store.Head) error) error {
	h, err := t.hanging(kinds...)
	if err != nil {
		return err
	}
	if err := do(&h); err != nil {
		return err
	}
	return t.putHead(h, kinds...)
}

// putHead writes the next revision of the head, with new digests of some kinds.
func (t *txn) putHead(h store.Head, kinds ...store.Hanging) (err error) {
	for _, kind := range kinds {
		if h.Digests[kind], err = digest(t, kind); err != nil {
			return err
		}
	}
	h.Revision++
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	seal, err := v.seals.MakeUnder(h, h.MAC)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO head (name, body, seal) VALUES ('head', ?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?1, seal = ?2`,
		h.Marshal(), seal.Bytes())
	if err == nil {
		t.moved = moved{h.Revision, h.MAC}
	}
	return err
}

// openSet reads the set of open invitations. The caller has verified that it hangs on
// the head.
func (t *txn) openSet() (o store.OpenSet, err error) {
	var body, seal []byte
	if err := t.row(`SELECT body, seal FROM head WHERE name = 'invitations'`).Scan(&body, &seal); err != nil {
		return o, unlessNoRow(err)
	}
	v, err := t.unsealed()
	if err == nil {
		o, err = v.parseOpenSet(body)
	}
	if err == nil {
		err = v.check(o, seal)
	}
	return o, err
}

func (v *vault) parseOpenSet(body []byte) (store.OpenSet, error) {
	o, err := store.ParseOpenSet(body)
	if err != nil {
		err = v.seals.Report("the set of open invitations cannot be read")
	}
	return o, err
}

func (t *txn) putOpenSet(o store.OpenSet) error {
	seal, err := t.seal(o)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO head (name, body, seal) VALUES ('invitations', ?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?1, seal = ?2`,
		o.Marshal(), seal)
	return err
}
