// Package rows alters the database of an appliance as one who can write to the file,
// and holds no key, would. It knows no table: tables, columns and keys are read from the
// schema, so that what a later release adds is altered too.
package rows

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	_ "modernc.org/sqlite" // the driver of the store
)

// Column is one column of a table.
type Column struct {
	Name    string
	Type    string
	NotNull bool
	Key     bool // of the primary key
	Refers  bool // to a row of another table
	Unique  bool // no two rows have the same
}

// Table is one table with its rows as they were read.
type Table struct {
	Name    string
	Columns []Column
	Rows    []Row
}

// Row is the values of a row, in the order of the columns: nil, int64, string or []byte.
type Row []any

// DB is the attacker's connection: no constraint that can be switched off holds it up.
type DB struct{ *sql.DB }

// Connect opens a database file. The caller calls Close. A transaction takes the write lock when it begins: SQLite does
// not wait for the lock, which the running appliance also takes, when a transaction that has read begins to write.
func Connect(path string) (DB, error) {
	source := url.URL{Scheme: "file", Path: path, RawQuery: "_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=foreign_keys(0)&_pragma=ignore_check_constraints(1)&_pragma=synchronous(0)"}
	db, err := sql.Open("sqlite", source.String())
	if err != nil {
		return DB{}, err
	}
	db.SetMaxOpenConns(1) // pragmas and transactions are of one connection
	return DB{db}, nil
}

// Read reads the tables of a database file, without the tables of SQLite and of the migrations,
// which grant nothing.
func Read(ctx context.Context, path string) (all []Table, err error) {
	db, err := Connect(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	names, err := db.strings(ctx, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~' AND name NOT LIKE 'goose~_%' ESCAPE '~' ORDER BY name`)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		t, err := db.table(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", name, err)
		}
		all = append(all, t)
	}
	return all, nil
}

func (db DB) strings(ctx context.Context, query string, args ...any) (all []string, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

func (db DB) table(ctx context.Context, name string) (t Table, err error) {
	t.Name = name
	refers, err := db.strings(ctx, `SELECT "from" FROM pragma_foreign_key_list(?)`, name)
	if err != nil {
		return t, err
	}
	if t.Columns, err = db.columns(ctx, name); err != nil {
		return t, err
	}
	unique, err := db.strings(ctx, `SELECT i.name FROM pragma_index_list(?) l, pragma_index_info(l.name) i WHERE l."unique" = 1 AND i.name IS NOT NULL`, name)
	if err != nil {
		return t, err
	}
	for i := range t.Columns {
		t.Columns[i].Unique = slices.Contains(unique, t.Columns[i].Name)
		t.Columns[i].Refers = slices.Contains(refers, t.Columns[i].Name)
	}
	t.Rows, err = db.rows(ctx, t)
	return t, err
}

func (db DB) columns(ctx context.Context, table string) (all []Column, err error) {
	rows, err := db.QueryContext(ctx, `SELECT name, type, "notnull", pk > 0 FROM pragma_table_info(?)`, table)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var c Column
		if err := rows.Scan(&c.Name, &c.Type, &c.NotNull, &c.Key); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

func (db DB) rows(ctx context.Context, t Table) (all []Row, err error) { return readRows(ctx, db, t) }

func readRows(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, t Table,
) (all []Row, err error) {
	rows, err := db.QueryContext(ctx, "SELECT "+t.list()+" FROM "+quoted(t.Name)+" ORDER BY 1")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		row, into := make(Row, len(t.Columns)), make([]any, len(t.Columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

// list is the columns, separated by commas.
func (t Table) list() string {
	var names []string
	for _, c := range t.Columns {
		names = append(names, quoted(c.Name))
	}
	return strings.Join(names, ", ")
}

// key is a condition that names a row, and its arguments.
func (t Table) key(r Row) (where string, args []any) {
	var parts []string
	for i, c := range t.Columns {
		if c.Key {
			parts, args = append(parts, quoted(c.Name)+" IS ?"), append(args, r[i])
		}
	}
	if parts == nil { // no key: all of it
		for i, c := range t.Columns {
			parts, args = append(parts, quoted(c.Name)+" IS ?"), append(args, r[i])
		}
	}
	return strings.Join(parts, " AND "), args
}

// Same finds the row of another reading of the table that has the same key.
func (t Table) Same(r Row) (Row, bool) {
	for _, other := range t.Rows {
		same := true
		for i, c := range t.Columns {
			same = same && (!c.Key || equal(r[i], other[i]))
		}
		if same {
			return other, true
		}
	}
	return nil, false
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
