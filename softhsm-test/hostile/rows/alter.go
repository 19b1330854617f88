package rows

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Alteration is one thing that a writer of the database does.
type Alteration struct {
	Table  string
	Column string // "": the whole record
	Kind   Kind
	Row    string // which record, in words
	// Replays: records are as a whole what they once were.
	Replays bool
	// Names what of the schema is altered, as the appliance has to name it.
	Names string

	bare  bool                    // the triggers stay as they are
	files func(path string) error // done before, beside the database
	do    func(context.Context, *sql.Tx) error
}

// Kind is how it is altered.
type Kind string

// The kinds.
const (
	Null    Kind = "null"
	Zero    Kind = "zero"
	Flip    Kind = "bit"
	Next    Kind = "next"
	Other   Kind = "other's"
	Older   Kind = "older"
	Swap    Kind = "swap"
	Insert  Kind = "insert"
	Delete  Kind = "delete"
	Empty   Kind = "empty"
	Mangle  Kind = "mangle"
	Trigger Kind = "trigger"
	Schema  Kind = "schema"
	Direct  Kind = "directed"
)

func (a Alteration) String() string {
	at := a.Table
	if a.Column != "" {
		at += "." + a.Column
	}
	return fmt.Sprintf("%s of %s (%s)", a.Kind, at, a.Row)
}

// ErrImpossible: the schema does not admit it.
var ErrImpossible = errors.New("the schema does not admit it")

// Apply alters a database file, in one transaction. Triggers of the schema that are in the
// way are taken away for that and put back. An error may wrap [ErrImpossible].
func (a Alteration) Apply(ctx context.Context, path string) (err error) {
	if a.files != nil {
		if err := a.files(path); err != nil {
			return err
		}
	}
	db, err := Connect(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := a.within(ctx, tx); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", a, err), tx.Rollback())
	}
	return tx.Commit()
}

// within does it with the triggers that there are if they let it, for the schema is then
// as it was even for one who counts its versions.
func (a Alteration) within(ctx context.Context, tx *sql.Tx) error {
	if a.bare {
		return a.do(ctx, tx)
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT hostile"); err != nil {
		return err
	}
	if a.do(ctx, tx) == nil {
		return nil
	}
	if _, err := tx.ExecContext(ctx, "ROLLBACK TO hostile"); err != nil {
		return err
	}
	return unguarded(ctx, tx, a.do)
}

// unguarded does something without the triggers that there are.
func unguarded(ctx context.Context, tx *sql.Tx, do func(context.Context, *sql.Tx) error) error {
	rows, err := tx.QueryContext(ctx, `SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'`)
	if err != nil {
		return err
	}
	var again []string
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return errors.Join(err, rows.Close())
		}
		again = append(again, "DROP TRIGGER "+quoted(name), text)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for i := 0; i < len(again); i += 2 {
		if _, err := tx.ExecContext(ctx, again[i]); err != nil {
			return err
		}
	}
	if err := do(ctx, tx); err != nil {
		return err
	}
	for i := 1; i < len(again); i += 2 {
		if _, err := tx.ExecContext(ctx, again[i]); err != nil {
			return err
		}
	}
	return nil
}

// change runs a statement that has to change something; what a constraint refuses is
// impossible.
func change(ctx context.Context, tx *sql.Tx, statement string, args ...any) error {
	res, err := tx.ExecContext(ctx, statement, args...)
	if err != nil {
		for _, words := range []string{"constraint failed", "cannot store", "datatype mismatch"} {
			if strings.Contains(err.Error(), words) {
				return fmt.Errorf("%v: %w", err, ErrImpossible)
			}
		}
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return fmt.Errorf("no row: %w", ErrImpossible)
	}
	return nil
}

// set writes values over columns of a row.
func (t Table) set(ctx context.Context, tx *sql.Tx, r Row, values map[int]any) error {
	var parts []string
	var args []any
	for i, c := range t.Columns {
		if v, ok := values[i]; ok {
			parts, args = append(parts, quoted(c.Name)+" = ?"), append(args, v)
		}
	}
	where, key := t.key(r)
	err := change(ctx, tx, "UPDATE "+quoted(t.Name)+" SET "+strings.Join(parts, ", ")+" WHERE "+where, append(args, key...)...)
	if err == nil {
		return nil
	}
	next := slices.Clone(r)
	for i, c := range t.Columns {
		if v, ok := values[i]; ok && c.Key {
			return err
		} else if ok {
			next[i] = v
		}
	}
	if t.replace(ctx, tx, next) == nil {
		return nil
	}
	return err
}

// replace replaces the row with the same key. Only triggers on insertion fire.
func (t Table) replace(ctx context.Context, tx *sql.Tx, r Row) error {
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(r)), ", ")
	return change(ctx, tx, "INSERT OR REPLACE INTO "+quoted(t.Name)+" ("+t.list()+") VALUES ("+marks+")", r...)
}

func (t Table) insert(ctx context.Context, tx *sql.Tx, r Row) error {
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(r)), ", ")
	return change(ctx, tx, "INSERT INTO "+quoted(t.Name)+" ("+t.list()+") VALUES ("+marks+")", r...)
}

func (t Table) delete(ctx context.Context, tx *sql.Tx, r Row) error {
	where, args := t.key(r)
	return change(ctx, tx, "DELETE FROM "+quoted(t.Name)+" WHERE "+where, args...)
}

// SQL is an alteration by statements, one after the other.
func SQL(name string, statements ...string) Alteration {
	return Alteration{Kind: Direct, Row: name, do: func(ctx context.Context, tx *sql.Tx) error {
		for _, s := range statements {
			if _, err := tx.ExecContext(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	}}
}

// Beside has something else done too, before, to what lies beside the database.
func (a Alteration) Beside(do func(path string) error) Alteration {
	a.files = do
	return a
}

// Func is an alteration by a function.
func Func(name string, do func(context.Context, *sql.Tx) error) Alteration {
	return Alteration{Kind: Direct, Row: name, do: do}
}
