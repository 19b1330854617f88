package sqlite

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"countersign/appliance/store"
)

// unavailable marks an error that the caller can do nothing about.
func unavailable(err error) error { return fmt.Errorf("%w: %w", store.ErrUnavailable, err) }

// resultCode is SQLite's extended result code, or 0 for an error of another kind.
func resultCode(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// own tells whether an error within a transaction is the operation's own, so that
// the rest of its group can be committed; it gives it the contract's name.
func own(err error) (named error, ok bool) {
	code := resultCode(err)
	switch {
	case err == nil:
		return nil, true
	case errors.Is(err, sql.ErrNoRows):
		return store.ErrNotFound, true
	case code == lib.SQLITE_CONSTRAINT_UNIQUE, code == lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		return store.ErrExists, true
	case code == 0, code&0xff == lib.SQLITE_CONSTRAINT, code&0xff == lib.SQLITE_TOOBIG:
		return err, true
	default:
		return unavailable(err), false
	}
}

// lost tells whether an error leaves unknown what is on the disk. After a failed
// fsync the kernel may have dropped the pages, and a second fsync that succeeds
// proves nothing; after corruption nothing that is read proves anything.
func lost(err error) bool {
	switch code := resultCode(err); {
	case code == lib.SQLITE_IOERR_FSYNC, code == lib.SQLITE_IOERR_DIR_FSYNC:
		return true
	default:
		return code&0xff == lib.SQLITE_CORRUPT || code&0xff == lib.SQLITE_NOTADB
	}
}

// blob is a value for a column that is NULL where there is nothing.
func blob(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// behind is the id of a change request as it is stored, NULL where there is none.
func behind(id [8]byte) any {
	if id == [8]byte{} {
		return nil
	}
	return id[:]
}

// usec is a time as it is stored.
func usec(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// stamp scans what usec wrote.
type stamp struct{ t *time.Time }

// Scan implements [sql.Scanner].
func (s stamp) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*s.t = time.Time{}
	case int64:
		*s.t = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("time stored as %T", src)
	}
	return nil
}

// fixed scans a column of exactly this many bytes; NULL is all zeros.
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

// roles scans a JSON array of strings; an empty one is nil.
type roles struct{ r *[]string }

// Scan implements [sql.Scanner].
func (s roles) Scan(src any) error {
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("roles stored as %T", src)
	}
	if *s.r = nil; text == "[]" {
		return nil
	}
	return json.Unmarshal([]byte(text), s.r)
}

func rolesText(r []string) (string, error) {
	if len(r) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(r)
	return string(b), err
}

// times scans a JSON array of microseconds.
type times struct{ t *[]time.Time }

// Scan implements [sql.Scanner]. NULL is an empty list.
func (s times) Scan(src any) error {
	*s.t = nil
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
		*s.t = append(*s.t, time.UnixMicro(us).UTC())
	}
	return nil
}

func timesText(all []time.Time) (string, error) {
	us := make([]int64, len(all))
	for i, t := range all {
		us[i] = t.UnixMicro()
	}
	b, err := json.Marshal(us)
	return string(b), err
}

// saturated adds without passing what a column holds.
func saturated(a, b uint64) int64 {
	sum := a + b
	if sum < a || sum > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(sum)
}
