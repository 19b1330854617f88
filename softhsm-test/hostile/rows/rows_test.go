package rows_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

const schema = `
CREATE TABLE one (id BLOB PRIMARY KEY CHECK (length(id) = 2), name TEXT NOT NULL UNIQUE, n INTEGER, mark BLOB) STRICT;
CREATE TABLE two (one BLOB NOT NULL REFERENCES one (id), part INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (one, part)) STRICT, WITHOUT ROWID;
CREATE TABLE record (sequence INTEGER PRIMARY KEY) STRICT;
INSERT INTO one VALUES (x'0001', 'a', 1, x'ff'), (x'0002', 'b', NULL, x'fe');
INSERT INTO two VALUES (x'0001', 1, 'x'), (x'0002', 1, 'y');
CREATE TRIGGER two_stays BEFORE DELETE ON two BEGIN SELECT RAISE(ABORT, 'two stays'); END;
`

func database(t *testing.T, statements ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := rows.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append([]string{schema}, statements...) {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) []rows.Table {
	t.Helper()
	tables, err := rows.Read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// TestEverything: every column is altered in every way that its type has, every record is
// inserted, deleted, swapped and put back; each alteration that the schema admits changes
// the database, triggers or not, and leaves the triggers there.
func TestEverything(t *testing.T) {
	path := database(t)
	earlier := read(t, database(t, "UPDATE one SET n = 7 WHERE name = 'a'", "DROP TRIGGER two_stays", "DELETE FROM two WHERE text = 'y'"))
	before := fmt.Sprint(read(t, path))
	seen := map[string]int{}
	for _, a := range rows.Generate(read(t, path), earlier) {
		at := filepath.Join(t.TempDir(), "case.db")
		if err := world.CopyFile(at, path); err != nil {
			t.Fatal(err)
		}
		err := a.Apply(t.Context(), at)
		if errors.Is(err, rows.ErrImpossible) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[fmt.Sprintf("%s.%s %s", a.Table, a.Column, a.Kind)]++
		if a.Kind != rows.Trigger && fmt.Sprint(read(t, at)) == before {
			t.Errorf("%s changes nothing", a)
		}
		guards(t, at, a)
	}
	for _, want := range []string{
		"one.id bit", "one.name bit", "one.name swap", "one.n null", "one.n zero", "one.n next", "one.n older", "one. older",
		"one. trigger", "one.mark swap", "one. swap", "one. insert", "one. delete", "two.part next", "two.text other's", "two. swap", "two. delete", "two. insert",
	} {
		if seen[want] == 0 {
			t.Errorf("no case of %q", want)
		}
	}
}

// guards holds that the trigger of the schema is there.
func guards(t *testing.T, path string, a rows.Alteration) {
	t.Helper()
	db, err := rows.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM sqlite_schema WHERE name = 'two_stays'").Scan(&n); err != nil || n != 1 {
		t.Errorf("%s: %d triggers, %v", a, n, err)
	}
}

// TestWholesale empties and spoils each table that has rows.
func TestWholesale(t *testing.T) {
	path := database(t)
	done := 0
	for _, a := range rows.Wholesale(read(t, path)) {
		at := filepath.Join(t.TempDir(), "case.db")
		if err := world.CopyFile(at, path); err != nil {
			t.Fatal(err)
		}
		if err := a.Apply(t.Context(), at); err == nil {
			done++
		} else if !errors.Is(err, rows.ErrImpossible) {
			t.Error(err)
		}
	}
	if done != 4 {
		t.Errorf("%d tables emptied or spoilt, want 2 twice", done)
	}
}
