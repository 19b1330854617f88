package sqlite

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// TestMigrateKeys checks that keys of a ceremony of an earlier version come into use when their
// epochs begin, and the next root does not.
func TestMigrateKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	db, err := sql.Open("sqlite", dsn(path, "rwc"))
	if err != nil {
		t.Fatal(err)
	}
	goose, err := provider(db)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := goose.UpTo(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	created, begins := time.UnixMicro(5_000_000).UTC(), time.UnixMicro(9_000_000).UTC()
	for _, row := range []struct {
		name    string
		version int
		begins  any
		cert    any
	}{{"kem", 1, begins.UnixMicro(), []byte{1}}, {"mac", 1, nil, nil}, {"root", 1, nil, nil}, {"root", 2, nil, nil}} {
		_, err := db.Exec(`INSERT INTO key VALUES (?, ?, zeroblob(20), NULL, ?, NULL, ?, ?)`, row.name, row.version, row.begins, row.cert, created.UnixMicro())
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	keys := migratedKeys(t, path)
	for i, want := range []struct {
		root      uint64
		activated time.Time
	}{{1, begins}, {0, created}, {0, created}, {0, time.Time{}}} {
		if k := keys[i]; k.Root != want.root || !k.ActivatedAt.Equal(want.activated) || k.Revision != 1 || k.Origin != store.Generated {
			t.Errorf("%s@%d is %+v, want root %d, activated %v", k.Name, k.Version, k, want.root, want.activated)
		}
	}
}

// migratedKeys migrates the schema and reads the keys, which are not sealed.
func migratedKeys(t *testing.T, path string) []store.Key {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "rw"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := upTo(t.Context(), db, 7); err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	keys, err := collect(snapshot{ctx: t.Context(), tx: tx}, func(s scanner) (store.Key, error) {
		k, err := scanKey(s)
		return k.Key, err
	}, `SELECT `+keyColumns+` FROM key ORDER BY name, version`)
	if err != nil || len(keys) != 4 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	return keys
}

// TestKeyTriggers checks that the table itself protects a key version from any program.
func TestKeyTriggers(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	at := time.UnixMicro(1).UTC()
	trust := store.Trust{Keys: []store.Key{
		{Name: "kem", Version: 1, CreatedAt: at}, {Name: "kem", Version: 2, CompromisedAt: at}, {Name: "kem", Version: 3, DestroyedAt: at},
	}}
	if err := s.AddTrust(t.Context(), trust, audit.NewRecord(audit.KindKeys, "key/kem", nil)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", dsn(path, "rw"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for statement, want := range map[string]string{
		"DELETE FROM key": "is never forgotten",
		"UPDATE key SET version = 9 WHERE version = 1":                                            "is never another key",
		"UPDATE key SET id = randomblob(20) WHERE version = 1":                                    "is never another key",
		"UPDATE key SET compromised_us = NULL WHERE version = 2":                                  "stays so",
		"UPDATE key SET destroyed_us = NULL WHERE version = 3":                                    "is not changed",
		"UPDATE key SET retired_us = 1 WHERE version = 1":                                         "",
		"UPDATE key SET destroyed_us = 1 WHERE version = 2":                                       "",
		"INSERT INTO key (name, version, id) SELECT name, version, id FROM key WHERE version = 1": "UNIQUE",
	} {
		_, err := db.Exec(statement)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", statement, err, want)
		}
	}
}
