package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// unsealedTables lists the tables that no seal covers, with the reason.
var unsealedTables = map[string]string{
	"record":           "audit records grant nothing",
	"goose_db_version": "countersignd migrate alone reads it",
	"sqlite_sequence":  "of goose_db_version",
}

// unsealedColumns lists such columns of the other tables.
var unsealedColumns = map[string]string{
	"decision.transaction_id": "finds a decision, whose payload has it too and is compared",
	"decision.ref":            "the row's place",
	"change_signature.change": "the row's place: the request has one signature less, and another one too many",
	"change.ref":              "the row's place",
	"device.ref":              "the row's place",
	"client.ref":              "the row's place",
}

// full creates a closed store with a row in every table.
func full(t *testing.T, path string) {
	t.Helper()
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unseal(t.Context(), testSeals(), nil); err != nil {
		t.Fatal(err)
	}
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	key := store.Key{
		Name: "mac", Version: 1, ID: [20]byte{1}, CreatedAt: storetest.Epoch, Origin: store.Generated, Tokens: []string{"t"}, Revision: 1,
		Public: make([]byte, 33), Cert: []byte("cert"), Sealed: []byte("sealed"), SealedFor: make([]byte, 33),
	}
	c := storetest.NewChange()
	first, attempt := p.Spend(1), p.Attempt(2)
	first.Pending = &store.Pending{Role: "approver", Expires: time.Now().Add(time.Hour)}
	first.Now, attempt.Now = time.Now(), time.Now()
	first.Charges = []store.Charge{{Service: 200, Period: time.Hour, At: storetest.Epoch, Currency: "EUR", Amount: 5}}
	_, err1 := s.Spend(t.Context(), first)
	_, err2 := s.Try(t.Context(), attempt)
	err = errors.Join(err1, err2,
		s.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{key}}, storetest.Note("")),
		s.AddAdmin(t.Context(), storetest.NewAdmin("ann"), storetest.Note("")),
		s.AddChange(t.Context(), c, storetest.Note("")),
		s.Invite(t.Context(), storetest.NewInvitation(store.KindClient, "bob"), storetest.Note("")),
		s.Close())
	if err != nil {
		t.Fatal(err)
	}
}

// namesIn reads a column of names.
func namesIn(t *testing.T, db *sql.DB, query string, args ...any) (all []string) {
	t.Helper()
	rows, err := db.Query(query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	return all
}

// altered is an expression for another value of a column, by the type of its value.
const altered = `CASE typeof(%[1]s)
	WHEN 'integer' THEN %[1]s + 1
	WHEN 'text' THEN CASE WHEN %[1]s LIKE '[%%' THEN '["x"]' ELSE %[1]s || 'x' END
	WHEN 'blob' THEN CASE WHEN length(%[1]s) > 1 THEN CAST(substr(%[1]s, 1, length(%[1]s) - 1) || iif(substr(%[1]s, -1) = X'7E', X'7F', X'7E') AS BLOB) ELSE X'0102' END
	ELSE %[2]s END`

// whenNull is a value of a column that has none, by its declared type.
var whenNull = map[string]string{"INTEGER": "1", "TEXT": "'x'", "BLOB": "X'0102030405060708'"}

// TestEveryColumnIsSealed changes each column of each table, past all checks and triggers, and
// requires the change to be found. A table or column that a migration adds without a seal fails
// here.
func TestEveryColumnIsSealed(t *testing.T) {
	path := newPath(t)
	full(t, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	tables := namesIn(t, db, `SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name`)
	columns := map[string][]string{}
	for _, table := range tables {
		columns[table] = namesIn(t, db, `SELECT name || ' ' || type FROM pragma_table_info(?)`, table)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, table := range tables {
		if unsealedTables[table] != "" {
			continue
		}
		for _, column := range columns[table] {
			name, kind, _ := strings.Cut(column, " ")
			if unsealedColumns[table+"."+name] != "" {
				continue
			}
			n++
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			alter(t, path, fmt.Sprintf(`UPDATE "%s" SET "%s" = %s WHERE rowid = (SELECT rowid FROM "%s" LIMIT 1)`,
				table, name, fmt.Sprintf(altered, `"`+name+`"`, whenNull[kind]), table), table)
			if err := found(t, path); err == nil {
				t.Errorf("another value of %s.%s is not found", table, name)
			}
		}
	}
	if n < 100 {
		t.Errorf("%d columns were changed", n)
	}
}

// alter runs a statement without the checks and triggers of the table, which are restored
// afterwards.
func alter(t *testing.T, path, statement, table string) {
	t.Helper()
	db, err := sql.Open("sqlite", path+"?_pragma=ignore_check_constraints(1)&_pragma=foreign_keys(0)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	triggers := namesIn(t, db, `SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?`, table)
	for _, name := range namesIn(t, db, `SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?`, table) {
		if _, err := db.Exec(`DROP TRIGGER "` + name + `"`); err != nil {
			t.Fatal(err)
		}
	}
	if table == "head" || table == "attempt" || table == "change_signature" { // without rowid
		statement, _, _ = strings.Cut(statement, " WHERE rowid")
	}
	if _, err := db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	for _, trigger := range triggers {
		if _, err := db.Exec(trigger); err != nil {
			t.Fatal(err)
		}
	}
}

// found returns the findings of a start and an examination.
func found(t *testing.T, path string) error {
	t.Helper()
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.Unseal(t.Context(), testSeals(), &storetest.Anchor{Mark: store.Mark{Revision: 1}}); err != nil {
		return err
	}
	_, forged, err := s.Verify(t.Context())
	return errors.Join(append(forged, err)...)
}

// TestFullIsWhole checks that the unaltered store of TestEveryColumnIsSealed is valid.
func TestFullIsWhole(t *testing.T) {
	path := newPath(t)
	full(t, path)
	if err := found(t, path); err != nil {
		t.Error(err)
	}
}
