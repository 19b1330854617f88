package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"countersign/appliance/store"
	"countersign/appliance/store/head"
)

// vault verifies the records of the store, once it is unsealed.
type vault struct {
	seals  *store.Seals
	anchor store.Anchor               // nil: none
	newest atomic.Pointer[store.Mark] // of the head that is durable; nil: none yet
	behind atomic.Bool                // the anchor has not followed the head yet: the head must not move
	// The sealed manifest is of this schema, so that no earlier program reads the records.
	upgraded atomic.Bool
	stored   int // number of the schema when the store was unsealed
	known    atomic.Pointer[knownChanges]

	// Used by the writer only.
	schema       map[object]string // as verified; nil: the store has no head yet
	foreign      bool              // another program changed the schema
	cookie, data int64             // PRAGMA schema_version and data_version
}

// mark returns the mark of the newest durable head, zero if there is none.
func (v *vault) mark() store.Mark {
	if m := v.newest.Load(); m != nil {
		return *m
	}
	return store.Mark{}
}

// catchUp advances the anchor to the head. While it fails, the head does not move, so that the head
// is never more than one revision ahead of the anchor.
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

// check verifies a record against the seal in its row.
func (v *vault) check(r store.Sealed, seal []byte) error {
	return v.seals.Check(r, store.ParseSeal(seal))
}

// unsealed returns the vault, or [store.ErrSealed].
func (s *database) unsealed() (*vault, error) {
	if v := s.vault.Load(); v != nil {
		return v, nil
	}
	return nil, store.ErrSealed
}

// verifier returns the vault; it is there in every transaction of an unsealed store.
func (t *txn) verifier() *vault { return t.vault.Load() }

func (t *txn) changes() *knownChanges {
	v := t.vault.Load()
	if v == nil {
		return nil
	}
	return v.known.Load()
}

// seal makes the seal of a record that is about to be written.
func (t *txn) seal(r store.Sealed) ([]byte, error) {
	seal, err := t.verifier().seals.Make(r)
	if err != nil {
		return nil, err
	}
	if t.moving != nil {
		t.moving.Wrote(r, seal)
	}
	return seal.Bytes(), nil
}

// put writes a record with its seal, which is the first argument of the statement. It returns the
// number of rows changed.
func (t *txn) put(r store.Sealed, statement string, args ...any) (int64, error) {
	seal, err := t.seal(r)
	if err != nil {
		return 0, err
	}
	return t.exec(statement, append([]any{seal}, args...)...)
}

// source is the writer's transaction or a snapshot.
type source interface {
	row(query string, args ...any) scanner
	rows(query string, args ...any) (*sql.Rows, error)
	verifier() *vault // nil: sealed
	// changes returns where the requests in force are, as of an earlier commit than the one that
	// the source sees; nil: not known.
	changes() *knownChanges
}

// snapshot is a read-only transaction, for work that takes more than one statement.
type snapshot struct {
	floor store.Mark // newest head that was durable before the snapshot
	known *knownChanges
	ctx   context.Context
	tx    *sql.Tx
	vault *vault
}

func (s snapshot) verifier() *vault { return s.vault }

func (s snapshot) changes() *knownChanges { return s.known }

func (s snapshot) row(query string, args ...any) scanner {
	return careful{s.tx.QueryRowContext(s.ctx, query, args...), s.vault, query}
}

func (s snapshot) rows(query string, args ...any) (*sql.Rows, error) {
	return s.tx.QueryContext(s.ctx, query, args...)
}

// read runs do on one snapshot of an unsealed store; doing names the operation in errors.
func (s *database) read(ctx context.Context, doing string, do func(snapshot, *vault) error) error {
	v, err := s.unsealed()
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	floor, known := v.mark(), v.known.Load() // before the snapshot, which may see a later head
	tx, err := s.r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return readError(ctx, doing, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return readError(ctx, doing, do(snapshot{floor, known, ctx, tx, v}, v))
}

// sealedRow is a sealed record as it was read, with the statement that writes another seal.
type sealedRow struct {
	head.Row
	put  string // the seal is its first argument
	args []any
}

// asRow keeps an error that says the row cannot be read as a record in the row, so that it hides no
// other row.
func asRow(r head.Row, seal []byte, err error, put string, args ...any) (sealedRow, error) {
	r.Seal = store.ParseSeal(seal)
	if errors.Is(err, store.ErrForged) {
		r.Err, err = err, nil
	}
	return sealedRow{r, put, args}, err
}

// readHanging reads all records of a kind.
var readHanging = [...]func(source) ([]sealedRow, error){
	head.Keys:        readKeys,
	head.Settings:    readSettings,
	head.Policies:    readPolicies,
	head.Admins:      readAdmins,
	head.Changes:     readChanges,
	head.Invitations: readOpenSet,
}

// reading reads the records of a kind for package store.
func reading(from source) head.Read {
	return func(kind head.Kind) ([]head.Row, error) {
		read := readHanging[kind]
		if kind == head.Changes {
			read = func(from source) ([]sealedRow, error) { return readInForce(from, from.changes()) }
		}
		rows, err := read(from)
		plain := make([]head.Row, len(rows))
		for i, r := range rows {
			plain[i] = r.Row
		}
		return plain, err
	}
}

// head reads and verifies the head, which floor must allow. A store that has none, and never had,
// is [store.ErrNotFound].
func (v *vault) head(from source, floor store.Mark) (head.Head, error) {
	var body, seal []byte
	switch err := from.row(`SELECT body, seal FROM head WHERE name = 'head'`).Scan(&body, &seal); {
	case err == nil:
		body = append([]byte{}, body...) // not nil: there is a row
	case !errors.Is(err, sql.ErrNoRows):
		return head.Head{}, err
	}
	return head.Open(v.seals, body, seal, floor)
}

// hung reads and verifies the records of a kind.
func (v *vault) hung(from source, h head.Head, kind head.Kind) (all head.Records, ended []head.Row, err error) {
	rows, err := reading(from)(kind)
	if err != nil {
		return nil, nil, err
	}
	return head.Verify(v.seals, h, kind, rows)
}

// hanging holds the verified records of a kind, and the head and vault used to verify them.
type hanging struct {
	from  snapshot
	head  head.Head
	vault *vault
	all   head.Records
	ended []head.Row // change requests that have ended, not verified
}

// onHead reads the records of a kind on one snapshot, and the head. An empty store has none.
func (s *database) onHead(ctx context.Context, doing string, kind head.Kind, do func(hanging) error) error {
	return s.read(ctx, doing, func(from snapshot, v *vault) error {
		h, err := v.head(from, from.floor)
		if err != nil {
			return err
		}
		all, ended, err := v.hung(from, h, kind)
		if err != nil {
			return err
		}
		return do(hanging{from, h, v, all, ended})
	})
}

// listHanging lists the records of a kind, none of an empty store.
func listHanging[R store.Sealed](ctx context.Context, s *database, doing string, kind head.Kind) (list []R, err error) {
	err = s.onHead(ctx, doing, kind, func(h hanging) error {
		list = head.List[R](h.all)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return list, err
}

// head returns the head as the transaction sees it.
func (t *txn) head() (head.Head, error) {
	v := t.verifier()
	m := v.mark()
	if t.moved.Revision > m.Revision {
		m = t.moved
	}
	return v.head(t, m)
}

// move changes records that hang on the head, and the head with them; see [head.Move].
func (t *txn) move(kinds []head.Kind, do func(*head.Head) error) error {
	v := t.verifier()
	if err := v.catchUp(); err != nil {
		return err
	}
	h, err := t.head()
	if err != nil {
		return err
	}
	m, err := head.Begin(v.seals, h, reading(t), kinds...)
	if err != nil {
		return err
	}
	return t.within(m, func() error { return do(&m.Head) })
}

// within runs do within a move of the head, and writes the head.
func (t *txn) within(m *head.Move, do func() error) error {
	t.moving = m
	defer func() { t.moving = nil }()
	if err := do(); err != nil {
		return err
	}
	h, seal, err := m.End(reading(t))
	if err == nil {
		_, err = t.exec(putHead, seal.Bytes(), "head", h.Marshal())
	}
	if err == nil {
		t.moved = h.Mark()
	}
	return err
}

const putHead = `INSERT INTO head (seal, name, body) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET body = ?3, seal = ?1`

// openSet returns the set of open invitations, while the head moves.
func (t *txn) openSet() head.OpenSet {
	r, _ := head.Find(t.moving.Records(head.Invitations), head.OpenSet{}.Record()) // the store has none before the first invitation
	open, _ := head.ParseOpenSet(r.Body)                                           // parsed when it was read
	return open
}

func (t *txn) putOpenSet(o head.OpenSet) error {
	_, err := t.put(o.Record(), putHead, "invitations", o.Marshal())
	return err
}

func readOpenSet(from source) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var body, seal []byte
		var o head.OpenSet
		err := s.Scan(&body, &seal)
		if err == nil {
			o, err = head.ParseOpenSet(body)
			if err != nil {
				err = from.verifier().seals.Report("the set of open invitations cannot be read")
			}
		}
		return asRow(head.Row{Record: o.Record()}, seal, err, `UPDATE head SET seal = ? WHERE name = 'invitations'`)
	}, `SELECT body, seal FROM head WHERE name = 'invitations'`)
}

// Unseal implements [store.Sealing].
func (s *database) Unseal(ctx context.Context, seals *store.Seals, anchor store.Anchor) error {
	v := &vault{seals: seals, anchor: anchor}
	const doing = "unsealing the store"
	if err := s.submit(ctx, doing, v.open); err != nil {
		return err
	}
	v.behind.Store(v.newest.Load() != nil)
	if err := v.catchUp(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	s.vault.Store(v)
	return nil
}

// open verifies the head, the records that hang on it and the schema.
func (v *vault) open(t *txn) error {
	schema, err := t.parsedAnew()
	err = cmp.Or(err, t.row("PRAGMA schema_version").Scan(&v.cookie), t.row("PRAGMA data_version").Scan(&v.data))
	if err != nil {
		return err
	}
	var floor store.Mark
	if v.anchor != nil {
		floor = v.anchor.Floor()
	}
	h, err := v.head(t, floor)
	if errors.Is(err, store.ErrNotFound) {
		var some bool
		err := t.row(`SELECT EXISTS (SELECT 1 FROM key) OR EXISTS (SELECT 1 FROM setting) OR EXISTS (SELECT 1 FROM client)`).Scan(&some)
		if err == nil && some {
			err = v.seals.Report("the head is missing")
		}
		v.upgraded.Store(true) // AddTrust writes the manifest
		return err             // nil: an empty store
	}
	if err != nil {
		return err
	}
	var settings head.Records
	for _, kind := range head.Kinds() {
		all, _, err := v.hung(unverified{t, v}, h, kind)
		if err != nil {
			return err
		}
		if kind == head.Settings {
			settings = all
		}
	}
	if err := v.verifySchema(t, settings); err != nil {
		return err
	}
	m := h.Mark()
	v.schema = schema
	v.seals.Use(h.MAC)
	v.newest.Store(&m)
	return nil
}

// unverified is the writer's transaction before the store is unsealed, with the vault to be.
type unverified struct {
	*txn
	v *vault
}

func (u unverified) verifier() *vault { return u.v }

// Claims implements [store.Sealing].
func (s *database) Claims(ctx context.Context) (c store.Claims, err error) {
	const doing = "reading the claims of the store"
	tx, err := s.r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return c, readError(ctx, doing, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	from := snapshot{ctx: ctx, tx: tx}
	err = from.row(`SELECT EXISTS (SELECT 1 FROM head WHERE name = 'head')`).Scan(&c.Founded)
	if err == nil {
		err = claims(from, &c)
	}
	return c, readError(ctx, doing, err)
}

// claims reads keys, settings and the newest policy, of any schema from 7 on.
func claims(from source, c *store.Claims) (err error) {
	c.Keys, err = collect(from, func(s scanner) (store.Key, error) {
		k, err := scanKey(s)
		return k.Key, err
	}, `SELECT `+keyColumns+` FROM key ORDER BY name, version`)
	if err != nil {
		return err
	}
	c.Settings = map[string][]byte{}
	_, err = collect(from, func(s scanner) (none struct{}, err error) {
		var one store.Setting
		if err = s.Scan(&one.Name, &one.Value); one.Name != schemaSetting {
			c.Settings[one.Name] = one.Value
		}
		return none, err
	}, `SELECT name, value FROM setting`)
	if err != nil {
		return err
	}
	p, err := scanPolicy(from.row(`SELECT ` + policyColumns + ` FROM policy ORDER BY version DESC LIMIT 1`))
	c.Policy = p.Policy
	return unlessNoRow(err)
}
