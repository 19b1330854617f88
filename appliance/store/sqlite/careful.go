package sqlite

import (
	"bytes"
	"database/sql"
	"fmt"
	"reflect"
	"strings"

	"countersign/appliance/store"
)

// careful scans a row that a writer of the file may have spoilt. A value that does not fit
// its column (a NULL, a number out of range) raises the alarm where there is a vault; it is
// no failure of the store.
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

// strict scans a value of exactly the storage class that its column has. STRICT tables are
// not checked when they are read: a text that a writer of the file made a BLOB is another
// value for SQL, and would be the same one in Go.
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

// tableOf is the first table that a query reads.
func tableOf(query string) string {
	_, from, _ := strings.Cut(query, "FROM ")
	name, _, _ := strings.Cut(strings.TrimLeft(from, " (\n\t"), " ")
	return name
}
