package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// TestSpoiltRows checks that an unreadable row raises the alarm, is used for nothing, and hides no
// other row.
func TestSpoiltRows(t *testing.T) {
	for _, row := range []struct{ name, statement string }{
		{"a number out of range", `UPDATE client SET status = 300 WHERE name = 'alice'`},
		{"a negative number", `UPDATE client SET version = -1 WHERE name = 'alice'`},
		{"no JSON", `UPDATE client SET roles = '[' WHERE name = 'alice'`},
		{"a length", `UPDATE client SET signing_key = x'00' WHERE name = 'alice'`},
		{"no list of times", `UPDATE restraint SET recent = 'x' WHERE client = (SELECT ref FROM client WHERE name = 'alice')`},
		{"a decision", `UPDATE decision SET random = x'00'`},
		{"an attempt", `UPDATE attempt SET m3 = x'00'`},
		{"an invitation", `UPDATE invitation SET roles = 'x' WHERE name = 'alice'`},
		{"a signature", `UPDATE change_signature SET signer = x'00'`},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, seals := unsealedNew(t)
			alice, err := storetest.Seed(t.Context(), s, "alice")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := storetest.Seed(t.Context(), s, "bob"); err != nil {
				t.Fatal(err)
			}
			spend, attempt := alice.Spend(1), alice.Attempt(3)
			spend.Now, attempt.Now = time.Now(), time.Now()
			_, spent := s.Spend(t.Context(), spend)
			_, tried := s.Try(t.Context(), attempt)
			c := storetest.NewChange()
			end := store.ChangeEnd{ID: c.ID, From: store.ChangeOpen, To: store.ChangeWithdrawn, At: storetest.Epoch}
			asked := s.AddChange(t.Context(), c, storetest.Note(""))
			if err := errors.Join(spent, tried, asked, s.EndChange(t.Context(), end, storetest.Note(""))); err != nil {
				t.Fatal(err)
			}
			spoil(t, s.path, "PRAGMA ignore_check_constraints = 1", row.statement, `UPDATE device SET floor = 3 WHERE name LIKE 'bob%'`)
			before := seals.Forged()
			records, forged, err := s.Verify(t.Context())
			if err != nil || len(forged) < 2 || records < 10 || seals.Forged() == before {
				t.Errorf("of %d records %v do not fit: %v", records, forged, err)
			}
			all, err := s.ListClients(t.Context())
			if err != nil || len(all) != 2 || all[1].Name != "bob" || all[1].Status != store.Active {
				t.Errorf("clients %v: %v", all, err)
			}
			if err := s.Recover(t.Context(), store.Recovered{}, storetest.Note("")); err != nil {
				t.Errorf("recovering beside it: %v", err)
			}
		})
	}
}

// TestSalvageSpoilt checks that records that fit are salvaged from a spoilt file.
func TestSalvageSpoilt(t *testing.T) {
	for _, c := range []struct {
		name       string
		statements []string
		left       int // at least
		bob        store.Status
		err        string // "": none
	}{
		{"nothing", nil, 0, store.Active, ""},
		{"a client with a decision", []string{`UPDATE client SET status = 2 WHERE name = 'alice'`}, 2, store.Active, ""},
		{"a client twice", []string{
			`DROP INDEX IF EXISTS client_name`, `CREATE TABLE other AS SELECT * FROM client`, `UPDATE other SET ref = ref + 100`, `INSERT INTO other SELECT * FROM client`,
			`PRAGMA legacy_alter_table = 1`, `ALTER TABLE client RENAME TO gone`, `ALTER TABLE other RENAME TO client`,
		}, 1, store.Active, ""},
		{"a view that never ends", []string{
			`PRAGMA legacy_alter_table = 1`, `ALTER TABLE client RENAME TO gone`,
			// Text is above every number, so each batch begins with the first row again.
			`CREATE VIEW client AS SELECT ref || '' AS ref, id, name, signing_key, uv_key, verifier, status, roles, version, cert, created_us, seal FROM gone`,
		}, 0, 0, "rows of client are out of order"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, seals := unsealedNew(t)
			alice, err := storetest.Seed(t.Context(), s, "alice")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := storetest.Seed(t.Context(), s, "bob"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Spend(t.Context(), alice.Spend(1)); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			spoil(t, s.path, append([]string{"PRAGMA foreign_keys = 0"}, c.statements...)...)
			fresh := filepath.Join(t.TempDir(), "fresh.db")
			left, err := Salvage(t.Context(), s.path, fresh, seals, store.Trust{Policy: store.Policy{Version: 1, Document: []byte("one"), ActivatedAt: storetest.Epoch}}, storetest.Note(""))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("salvaging: %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(left) < c.left {
				t.Errorf("left behind: %v", left)
			}
			if got := statusIn(t.Context(), fresh, seals, "bob"); got != c.bob {
				t.Errorf("bob is %s, want %s", got, c.bob)
			}
		})
	}
}

func statusIn(ctx context.Context, path string, seals *store.Seals, name string) store.Status {
	s, err := openDatabase(ctx, Config{Path: path})
	if err != nil {
		return 0
	}
	defer func() { _ = s.Close() }() // it is read only
	if s.Unseal(ctx, seals, nil) != nil {
		return 0
	}
	all, _ := s.ListClients(ctx) // none
	for _, c := range all {
		if c.Name == name {
			return c.Status
		}
	}
	return 0
}

// spoil runs statements as another program would, one after the other.
func spoil(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}
