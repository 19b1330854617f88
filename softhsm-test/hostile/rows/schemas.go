package rows

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// Schemas gives alterations of the schema itself: what guards rows taken away or disarmed,
// and things added that no release has made. Each says what has to be named then.
func Schemas(ctx context.Context, path string) (all []Alteration, err error) {
	db, err := Connect(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, kind := range []string{"trigger", "index"} {
		names, err := db.strings(ctx, `SELECT name FROM sqlite_schema WHERE type = ? AND sql IS NOT NULL`, kind)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			definition, on, err := db.object(ctx, kind, name)
			if err != nil {
				return nil, err
			}
			drop := "DROP " + kind + " " + quoted(name)
			all = append(all, schema("without "+kind+" "+name, name, drop))
			if kind == "trigger" {
				all = append(all, schema("trigger "+name+" does nothing", name, drop, "CREATE TRIGGER "+quoted(name)+" AFTER INSERT ON "+quoted(on)+" BEGIN SELECT 1; END"))
			} else {
				all = append(all, schema("index "+name+" is another", name, drop, strings.Replace(definition, "UNIQUE", "", 1)+" "))
			}
		}
	}
	tables, err := db.strings(ctx, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'`)
	if err != nil {
		return nil, err
	}
	for _, name := range tables {
		all = append(all,
			schema("a trigger on "+name, "trigger hostile", "CREATE TRIGGER hostile AFTER INSERT ON "+quoted(name)+" BEGIN SELECT 1; END"),
			schema("a column more in "+name, name, "ALTER TABLE "+quoted(name)+" ADD COLUMN hostile TEXT"),
			schema("an index more on "+name, "index hostile", "CREATE INDEX hostile ON "+quoted(name)+" ((1))"),
			schema("without table "+name, name, "DROP TABLE "+quoted(name)),
			schema("a view in place of "+name, name, "ALTER TABLE "+quoted(name)+" RENAME TO hostile", "CREATE VIEW "+quoted(name)+" AS SELECT * FROM hostile"))
	}
	return append(all,
		schema("a table more", "table hostile", "CREATE TABLE hostile (x TEXT)"),
		schema("a view", "view hostile", "CREATE VIEW hostile AS SELECT * FROM client"),
		schema("a virtual table", "table hostile", "CREATE VIRTUAL TABLE hostile USING fts5(x)")), nil
}

// object is the definition of an object, and the table that it is on.
func (db DB) object(ctx context.Context, kind, name string) (definition, on string, err error) {
	err = db.QueryRowContext(ctx, `SELECT sql, tbl_name FROM sqlite_schema WHERE type = ? AND name = ?`, kind, name).Scan(&definition, &on)
	return definition, on, err
}

// schema is statements; the triggers are not put back after them.
func schema(what, names string, statements ...string) Alteration {
	return Alteration{Table: "schema", Kind: Schema, Row: what, Names: names, bare: true, do: func(ctx context.Context, tx *sql.Tx) error {
		for _, s := range statements {
			if _, err := tx.ExecContext(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	}}
}

// Unnoticed puts the number of the schema's version back after an alteration, so that who
// counts the versions sees none.
func Unnoticed(ctx context.Context, path string, do func() error) (err error) {
	db, err := Connect(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&version); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf("PRAGMA schema_version = %d", version))
	return err
}
