package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"countersign/appliance/store"
)

// scanner is implemented by [sql.Row] and [sql.Rows].
type scanner interface{ Scan(dest ...any) error }

type failed struct{ err error }

// Scan returns the error.
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

// query is a list to be read: doing names the operation in errors.
type query struct {
	doing string
	sql   string
	args  []any
}

// list reads all rows of a query through scan.
func list[T any](ctx context.Context, r *reader, q query, scan func(scanner) (T, error)) ([]T, error) {
	s, err := r.prepare(ctx, q.sql)
	if err != nil {
		return nil, readError(ctx, q.doing, err)
	}
	rows, err := s.QueryContext(ctx, q.args...)
	if err != nil {
		return nil, readError(ctx, q.doing, err)
	}
	all, err := scanAll(rows, r.vault.Load(), q.sql, scan)
	return all, readError(ctx, q.doing, err)
}

// collect reads all rows of a query through scan.
func collect[T any](from source, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := from.rows(query, args...)
	if err != nil {
		return nil, err
	}
	return scanAll(rows, from.verifier(), query, scan)
}

func scanAll[T any](rows *sql.Rows, v *vault, query string, scan func(scanner) (T, error)) ([]T, error) {
	defer func() { _ = rows.Close() }() // read to the end, or failed already
	var all []T
	for rows.Next() {
		one, err := scan(careful{rows, v, query})
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// readError wraps the error of a read: the context's own, not found, forged or unavailable.
func readError(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	named, alone := own(err)
	switch {
	case ctx.Err() != nil:
		named = ctx.Err()
	case errors.Is(err, store.ErrForged), errors.Is(err, store.ErrNotFound): // named already
	case alone && resultCode(err) == 0 && named == err:
		named = unavailable(err) // closed
	}
	return fmt.Errorf("%s: %w", doing, named)
}

// careful scans a row that another program may have spoilt. A value that does not fit its column (a
// NULL, a number out of range) raises the alarm if there is a vault; it does not make the store
// unavailable.
type careful struct {
	scanner
	vault *vault // nil: sealed
	query string
}

// scanFailed begins the errors of database/sql for a value that a destination refuses.
const scanFailed = "sql: Scan error"

// Scan returns an error that wraps [store.ErrForged] for a row that cannot be read.
func (c careful) Scan(dest ...any) error {
	for i := range dest {
		dest[i] = strict{dest[i]}
	}
	err := c.scanner.Scan(dest...)
	if err == nil || !strings.HasPrefix(err.Error(), scanFailed) {
		return err
	}
	what := fmt.Sprintf("a row of %s cannot be read (%s)", tableOf(c.query), strings.TrimPrefix(err.Error(), scanFailed+" on "))
	if c.vault == nil {
		return fmt.Errorf("%s: %w", what, store.ErrForged)
	}
	return c.vault.seals.Report(what)
}

// strict scans a value of exactly the storage class of its column. SQLite does not check STRICT
// tables on reading: a text that another program has stored as a BLOB is another value for SQL, but
// would be the same value in Go.
type strict struct{ dest any }

// Scan implements [sql.Scanner].
func (s strict) Scan(src any) error {
	_, isText := src.(string)
	number, isNumber := src.(int64)
	ok := true
	switch dest := s.dest.(type) {
	case *sql.NullString:
		if ok = src == nil || isText; ok {
			return dest.Scan(src)
		}
	case *sql.Null[uint8], *sql.Null[uint32], *sql.Null[int64]:
		if ok = src == nil || isNumber; ok {
			return dest.(sql.Scanner).Scan(src)
		}
	case sql.Scanner:
		return dest.Scan(src)
	case *[]byte:
		var b []byte
		if b, ok = src.([]byte); ok || src == nil {
			*dest = bytes.Clone(b)
			return nil
		}
	default:
		into := reflect.ValueOf(s.dest).Elem()
		switch {
		case into.Kind() == reflect.String && isText:
			into.SetString(src.(string))
		case into.CanInt() && isNumber && !into.OverflowInt(number):
			into.SetInt(number)
		case into.CanUint() && isNumber && number >= 0 && !into.OverflowUint(uint64(number)):
			into.SetUint(uint64(number))
		case into.Kind() == reflect.Bool && isNumber && number>>1 == 0:
			into.SetBool(number == 1)
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%T stored where %T belongs", src, s.dest)
	}
	return nil
}

// tableOf returns the first table that a query reads.
func tableOf(query string) string {
	_, from, _ := strings.Cut(query, "FROM ")
	name, _, _ := strings.Cut(strings.TrimLeft(from, " (\n\t"), " ")
	return name
}

// ErrLocked means that another program holds the database, or its lock.
var ErrLocked = fmt.Errorf("%w: another program holds it", store.ErrUnavailable)

// unavailable marks an error that the caller cannot repair.
func unavailable(err error) error {
	if resultCode(err)&0xff == lib.SQLITE_BUSY {
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// resultCode returns the extended result code of SQLite, or 0 for any other error.
func resultCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// own reports whether an error belongs to one operation only, so that the rest of its group can be
// committed. named is the error in terms of the contract.
func own(err error) (named error, ok bool) {
	code := resultCode(err)
	switch {
	case err == nil:
		return nil, true
	case errors.Is(err, sql.ErrNoRows), errors.Is(err, store.ErrNotFound):
		return store.ErrNotFound, true
	case code == lib.SQLITE_CONSTRAINT_UNIQUE, code == lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		return store.ErrExists, true
	case code == 0, code&0xff == lib.SQLITE_CONSTRAINT, code&0xff == lib.SQLITE_TOOBIG:
		return err, true
	default:
		return unavailable(err), false
	}
}

// lost reports whether an error leaves the content of the disk unknown. After a failed fsync the
// kernel may have dropped the pages, and a second fsync that succeeds proves nothing. After
// corruption no read proves anything.
func lost(err error) bool {
	switch code := resultCode(err); {
	case code == lib.SQLITE_IOERR_FSYNC, code == lib.SQLITE_IOERR_DIR_FSYNC:
		return true
	default:
		return code&0xff == lib.SQLITE_CORRUPT || code&0xff == lib.SQLITE_NOTADB
	}
}

// insertInto returns the statement that inserts a row of these columns.
func insertInto(table, columns string) string {
	marks := strings.Repeat(", ?", strings.Count(columns, ",")+1)
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, columns, marks[2:])
}

// The types below scan and bind a column of which a record has another form.

// stamp is a time in Unix microseconds; the zero time is NULL.
type stamp struct{ t *time.Time }

// Scan implements [sql.Scanner].
func (s stamp) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*s.t = time.Time{}
	case int64:
		if *s.t = time.UnixMicro(v).UTC(); v == 0 { // as in a seal
			*s.t = time.Time{}
		}
	default:
		return fmt.Errorf("time stored as %T", src)
	}
	return nil
}

// Value implements [driver.Valuer].
func (s stamp) Value() (driver.Value, error) {
	if s.t.IsZero() {
		return nil, nil
	}
	return s.t.UnixMicro(), nil
}

// fixed is a BLOB of exactly this many bytes; it scans NULL as zeros.
type fixed []byte

// Scan implements [sql.Scanner].
func (f fixed) Scan(src any) error {
	b, ok := src.([]byte)
	switch {
	case src == nil:
		clear(f)
	case !ok || len(b) != len(f):
		return fmt.Errorf("%T of %d bytes stored where %d bytes belong", src, len(b), len(f))
	default:
		copy(f, b)
	}
	return nil
}

// changeID is the id of a change request; NULL is none, which is all zeros.
type changeID []byte

// Scan implements [sql.Scanner].
func (c changeID) Scan(src any) error { return fixed(c).Scan(src) }

// Value implements [driver.Valuer].
func (c changeID) Value() (driver.Value, error) {
	if bytes.Count(c, []byte{0}) == len(c) {
		return nil, nil
	}
	return []byte(c), nil
}

// optional is a BLOB that is NULL when it is empty.
type optional struct{ b *[]byte }

// Scan implements [sql.Scanner].
func (o optional) Scan(src any) error { return strict{o.b}.Scan(src) }

// Value implements [driver.Valuer].
func (o optional) Value() (driver.Value, error) {
	if len(*o.b) == 0 {
		return nil, nil
	}
	return *o.b, nil
}

// texts is a list of strings in JSON; it scans an empty list as nil.
type texts struct{ list *[]string }

// Scan implements [sql.Scanner].
func (x texts) Scan(src any) error {
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("list stored as %T", src)
	}
	if *x.list = nil; text == "[]" {
		return nil
	}
	return json.Unmarshal([]byte(text), x.list)
}

// Value implements [driver.Valuer].
func (x texts) Value() (driver.Value, error) {
	if len(*x.list) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(*x.list)
	return string(b), err
}

// times is a list of times in JSON, as Unix microseconds; it scans NULL as nil.
type times struct{ list *[]time.Time }

// Scan implements [sql.Scanner].
func (x times) Scan(src any) error {
	*x.list = nil
	if src == nil {
		return nil
	}
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("times stored as %T", src)
	}
	var all []int64
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return fmt.Errorf("times: %v", err)
	}
	for _, us := range all {
		*x.list = append(*x.list, time.UnixMicro(us).UTC())
	}
	return nil
}

// Value implements [driver.Valuer].
func (x times) Value() (driver.Value, error) {
	us := make([]int64, len(*x.list))
	for i, t := range *x.list {
		us[i] = t.UnixMicro()
	}
	b, err := json.Marshal(us)
	return string(b), err
}

// packed is a list in CBOR; an empty one is NULL.
type packed[T any] struct{ list *[]T }

// Scan implements [sql.Scanner].
func (p packed[T]) Scan(src any) error {
	*p.list = nil
	var b []byte
	if err := (strict{&b}).Scan(src); err != nil || len(b) == 0 {
		return err
	}
	return cbor.Unmarshal(b, p.list)
}

// Value implements [driver.Valuer].
func (p packed[T]) Value() (driver.Value, error) {
	if len(*p.list) == 0 {
		return nil, nil
	}
	return cbor.Marshal(*p.list)
}
