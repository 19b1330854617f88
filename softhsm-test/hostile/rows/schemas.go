package rows

import (
	"context"
	"database/sql"
	"errors"
)

// Schemas gives alterations of the schema itself: what guards rows taken away, and things
// added that no release has made.
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
			all = append(all, schema("without "+kind+" "+name, "DROP "+kind+" "+quoted(name)))
		}
	}
	tables, err := db.strings(ctx, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'`)
	if err != nil {
		return nil, err
	}
	for _, name := range tables {
		all = append(all,
			schema("a trigger on "+name, "CREATE TRIGGER hostile AFTER INSERT ON "+quoted(name)+" BEGIN SELECT 1; END"),
			schema("a column more in "+name, "ALTER TABLE "+quoted(name)+" ADD COLUMN hostile TEXT"))
	}
	return append(all,
		schema("a table more", "CREATE TABLE hostile (x TEXT)"),
		schema("a view", "CREATE VIEW hostile AS SELECT * FROM client"),
		schema("an index more", "CREATE INDEX hostile ON client (status)")), nil
}

// schema is one statement; the triggers are not put back after it.
func schema(name, statement string) Alteration {
	return Alteration{Table: "schema", Kind: Schema, Row: name, bare: true, do: func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statement)
		return err
	}}
}
