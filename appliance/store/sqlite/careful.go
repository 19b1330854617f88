package sqlite

import (
	"fmt"
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

// tableOf is the first table that a query reads.
func tableOf(query string) string {
	_, from, _ := strings.Cut(query, "FROM ")
	name, _, _ := strings.Cut(strings.TrimLeft(from, " (\n\t"), " ")
	return name
}
