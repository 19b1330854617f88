package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"countersign/appliance/store"
)

// txn is the writer's connection with its prepared statements, as an operation
// sees it. Contexts are left out: what was begun is finished.
type txn struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	vault *atomic.Pointer[vault]

	moved store.Mark                // of the head that the group has written; zero: none
	hung  map[store.Hanging]hanging // what hangs on the head, while it moves
}

func newTxn(conn *sql.Conn, v *atomic.Pointer[vault]) *txn {
	return &txn{conn: conn, stmts: map[string]*sql.Stmt{}, vault: v}
}

func (t *txn) prepare(query string) (*sql.Stmt, error) {
	if s, ok := t.stmts[query]; ok {
		return s, nil
	}
	s, err := t.conn.PrepareContext(context.Background(), query)
	if err == nil {
		t.stmts[query] = s
	}
	return s, err
}

// exec returns the number of rows changed.
func (t *txn) exec(query string, args ...any) (int64, error) {
	s, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// insert returns the new row's key.
func (t *txn) insert(query string, args ...any) (int64, error) {
	s, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// row is a row to be scanned, or [sql.ErrNoRows].
func (t *txn) row(query string, args ...any) scanner {
	s, err := t.prepare(query)
	if err != nil {
		return failed{err}
	}
	return careful{s.QueryRow(args...), t.vault.Load(), query}
}

// rows are the rows of a query, which the caller closes.
func (t *txn) rows(query string, args ...any) (*sql.Rows, error) {
	s, err := t.prepare(query)
	if err != nil {
		return nil, err
	}
	return s.Query(args...)
}

// close gives the connection back to its pool, which is closed next.
func (t *txn) close() error {
	var errs []error
	for _, s := range t.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, t.conn.Close())...)
}

// scanner is what [sql.Row] and [sql.Rows] have in common.
type scanner interface{ Scan(dest ...any) error }

type failed struct{ err error }

// Scan returns why there is no row.
func (f failed) Scan(...any) error { return f.err }

// reader is the pool of connections that read, with its prepared statements.
type reader struct {
	db    *sql.DB
	vault *atomic.Pointer[vault]
	stmts sync.Map // query → *sql.Stmt
}

func (r *reader) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	if s, ok := r.stmts.Load(query); ok {
		return s.(*sql.Stmt), nil
	}
	s, err := r.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if kept, loaded := r.stmts.LoadOrStore(query, s); loaded {
		return kept.(*sql.Stmt), s.Close()
	}
	return s, nil
}

func (r *reader) row(ctx context.Context, query string, args ...any) scanner {
	s, err := r.prepare(ctx, query)
	if err != nil {
		return failed{err}
	}
	return careful{s.QueryRowContext(ctx, args...), r.vault.Load(), query}
}

// query is a list to be read: what and where, and the query with its arguments.
type query struct {
	doing string
	sql   string
	args  []any
}

// list reads all rows of a query through scan.
func list[T any](ctx context.Context, r *reader, q query, scan func(scanner) (T, error)) ([]T, error) {
	all, err := scanAll(ctx, r, q, scan)
	if err != nil {
		return nil, readError(ctx, q.doing, err)
	}
	return all, nil
}

func scanAll[T any](ctx context.Context, r *reader, q query, scan func(scanner) (T, error)) ([]T, error) {
	s, err := r.prepare(ctx, q.sql)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, q.args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []T
	for rows.Next() {
		v, err := scan(careful{rows, r.vault.Load(), q.sql})
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// readError names the error of a read: the context's own, not found, or unavailable.
func readError(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	named, alone := own(err)
	switch {
	case ctx.Err() != nil:
		named = ctx.Err()
	case errors.Is(err, store.ErrForged): // a record that does not fit, or a row that does not parse
	case alone && resultCode(err) == 0 && named == err:
		named = unavailable(err) // closed
	}
	return fmt.Errorf("%s: %w", doing, named)
}
