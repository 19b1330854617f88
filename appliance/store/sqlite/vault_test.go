package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/head"
	"countersign/appliance/store/storetest"
)

func testSeals() *store.Seals {
	s := store.NewSeals(nil)
	s.Add(1, make([]byte, 32), false)
	s.Add(2, append(make([]byte, 31), 2), false)
	s.Use(1)
	return s
}

// foundedParties are enrolled in every store of foundedAt.
var foundedParties = storetest.NewParties("alice")

var foundedFile = prepared(func(ctx context.Context, s store.Store) error {
	return errors.Join(
		s.Unseal(ctx, testSeals(), nil),
		foundedParties.Enrol(ctx, s),
		s.AddAdmin(ctx, storetest.NewAdmin("ann"), storetest.Note("")),
		s.AddAdmin(ctx, storetest.NewAdmin("bob"), storetest.Note("")))
})

// foundedAt returns the path of a closed store with a client, a device and the
// administrators ann and bob.
func foundedAt(t *testing.T) string {
	t.Helper()
	return foundedFile.copied(t)
}

// unseals opens, unseals and closes the store at a path.
func unseals(t *testing.T, path string, a store.Anchor) error {
	t.Helper()
	s, err := openDatabase(t.Context(), Config{Path: path, Existing: true})
	if err != nil {
		return err
	}
	err = s.Unseal(t.Context(), testSeals(), a)
	return errors.Join(err, s.Close())
}

// TestForeignSchema checks that objects that no release made are refused by name at the start.
func TestForeignSchema(t *testing.T) {
	for name, c := range map[string]struct{ statement, want string }{
		"table":          {`CREATE TABLE mine (x)`, "table mine is foreign"},
		"view":           {`CREATE VIEW clients AS SELECT * FROM client`, "view clients is foreign"},
		"index":          {`CREATE INDEX quick ON client (status)`, "index quick is foreign"},
		"trigger":        {`CREATE TRIGGER lend AFTER INSERT ON record BEGIN UPDATE client SET roles = '["approver"]'; END`, "trigger lend is foreign"},
		"column":         {`ALTER TABLE client ADD COLUMN mine TEXT`, "table client was changed"},
		"dropped":        {`DROP TRIGGER restraint_rises`, "trigger restraint_rises is missing"},
		"dropped index":  {`DROP INDEX decision_approved`, "index decision_approved is missing"},
		"replaced":       {`DROP TRIGGER record_not_deleted; CREATE TRIGGER record_not_deleted BEFORE DELETE ON record BEGIN SELECT 1; END`, "trigger record_not_deleted was changed"},
		"table for view": {`ALTER TABLE device RENAME TO device_; CREATE VIEW device AS SELECT * FROM device_`, "view device is foreign"},
		"statistics":     {`ANALYZE`, "table sqlite_stat1 is foreign"},
	} {
		t.Run(name, func(t *testing.T) {
			path := foundedAt(t)
			raw(t, path, c.statement)
			if err := unseals(t, path, nil); !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestSchemaWhileServing checks that a schema that another program changes while the store serves
// ends all writing, and that Verify names it.
func TestSchemaWhileServing(t *testing.T) {
	path, p := foundedAt(t), foundedParties
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	seals := testSeals()
	if err := s.Unseal(t.Context(), seals, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Spend(t.Context(), p.Spend(1)); err != nil {
		t.Fatal(err)
	}
	raw(t, path, `CREATE TRIGGER lend AFTER INSERT ON record BEGIN UPDATE client SET roles = '["approver"]'; END`)
	if _, err := s.Spend(t.Context(), p.Spend(2)); !errors.Is(err, store.ErrForged) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("spent: %v", err)
	}
	_, forged, err := s.Verify(t.Context())
	if err != nil || len(forged) != 1 || !strings.Contains(forged[0].Error(), "trigger lend is foreign") {
		t.Errorf("verified: %v, %v", forged, err)
	}
	raw(t, path, `DROP TRIGGER lend`)
	if _, err := s.Spend(t.Context(), p.Spend(3)); !errors.Is(err, store.ErrForged) {
		t.Errorf("spent after it was taken away again: %v", err)
	}
	if err := s.Append(t.Context(), storetest.Note("")); err == nil {
		t.Error("a record was appended")
	}
}

// TestHangs checks that missing and old rows under the head are refused at once.
func TestHangs(t *testing.T) {
	for name, c := range map[string]struct{ statement, want string }{
		"administrator gone":  {`DROP TRIGGER admin_not_deleted; DELETE FROM admin WHERE name = 'bob'`, "administrators do not match the head"},
		"policy gone":         {`DELETE FROM policy`, "policies do not match the head"},
		"setting gone":        {`DELETE FROM setting WHERE name = 'schema'`, "settings do not match the head"},
		"open set gone":       {`DELETE FROM head WHERE name = 'invitations'`, "open invitations do not match the head"},
		"head changed":        {`UPDATE head SET body = zeroblob(10) WHERE name = 'head'`, "the head cannot be read"},
		"head sealed by none": {`UPDATE head SET seal = zeroblob(40) WHERE name = 'head'`, "its seal is under mac@0"},
	} {
		t.Run(name, func(t *testing.T) {
			path := foundedAt(t)
			raw(t, path, c.statement)
			if err := unseals(t, path, nil); !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestAdded checks that a row that fits no seal raises the alarm and is in no list.
func TestAdded(t *testing.T) {
	for name, statement := range map[string]string{
		"administrator": `INSERT INTO admin SELECT zeroblob(8), 'eve', zeroblob(33), status, version, created_us, change, seal FROM admin WHERE name = 'ann'`,
		"setting":       `INSERT INTO setting (name, value, seal) SELECT 'x', value, seal FROM setting`,
		"key":           `INSERT INTO key (name, version, id, seal) SELECT 'mac', 9, zeroblob(20), seal FROM setting`,
	} {
		t.Run(name, func(t *testing.T) {
			path := foundedAt(t)
			s := openAt(t, path)
			before, beforeKeys, beforeSettings := lists(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			raw(t, path, statement)
			s, err := openDatabase(t.Context(), Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			seals := testSeals()
			if err := s.Unseal(t.Context(), seals, nil); err != nil || seals.Forged() == 0 {
				t.Fatalf("%d alarms: %v", seals.Forged(), err)
			}
			admins, keys, settings := lists(t, s)
			if !reflect.DeepEqual(admins, before) || !reflect.DeepEqual(keys, beforeKeys) || !reflect.DeepEqual(settings, beforeSettings) {
				t.Errorf("%v, %v, %v", admins, keys, settings)
			}
			if err := s.AddAdmin(t.Context(), storetest.NewAdmin("cat"), storetest.Note("")); err != nil {
				t.Error(err)
			}
		})
	}
}

func lists(t *testing.T, s *database) (admins []store.Admin, keys []store.Key, settings map[string][]byte) {
	t.Helper()
	admins, err1 := s.ListAdmins(t.Context())
	keys, err2 := s.ListKeys(t.Context())
	settings, err3 := s.Settings(t.Context())
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return admins, keys, settings
}

// TestOldStore checks that the anchor refuses an earlier state of the whole database, and an empty
// one.
func TestOldStore(t *testing.T) {
	path := foundedAt(t)
	a := &storetest.Anchor{}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(s.Unseal(t.Context(), testSeals(), a), s.AddAdmin(t.Context(), storetest.NewAdmin("cat"), storetest.Note("")), s.Close())
	if err != nil {
		t.Fatal(err)
	}
	if err := unseals(t, path, a); err != nil {
		t.Fatal(err)
	}
	newest := *a
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unseals(t, path, a); !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), "was there before") {
		t.Errorf("an older database: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	empty, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = empty.Close() }()
	if err := empty.Unseal(t.Context(), testSeals(), a); !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), "the head is missing") {
		t.Errorf("an empty database: %v", err)
	}
	if *a != newest {
		t.Errorf("the anchor went from %+v to %+v", newest, *a)
	}
	if err := unseals(t, filepath.Join(t.TempDir(), "none.db"), nil); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("no database: %v", err)
	}
}

// TestPutBackWhileServing checks that an old head and its records are refused while the store
// serves.
func TestPutBackWhileServing(t *testing.T) {
	s, _ := unsealedNew(t)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	tamper(t, s, `CREATE TEMP TABLE old AS SELECT name, body, seal FROM head`)
	ann := storetest.NewAdmin("ann")
	if err := s.AddAdmin(t.Context(), ann, storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	tamper(t, s, `UPDATE head SET (body, seal) = (SELECT body, seal FROM old WHERE old.name = head.name)`)
	for name, do := range map[string]func() error{
		"an administrator": func() error { return s.AddAdmin(t.Context(), storetest.NewAdmin("bob"), storetest.Note("")) },
		"an invitation": func() error {
			return s.Invite(t.Context(), storetest.NewInvitation(store.KindClient, "carol"), storetest.Note(""))
		},
		"a list":   func() error { _, err := s.ListAdmins(t.Context()); return err },
		"a policy": func() error { _, err := s.ActivePolicy(t.Context()); return err },
		"a serial": func() error { _, err := s.Spend(t.Context(), p.Spend(1)); return err },
	} {
		if err := do(); !errors.Is(err, store.ErrForged) {
			t.Errorf("%s under an old head: %v", name, err)
		}
	}
}

// TestSealed checks that a sealed store returns nothing and accepts only records.
func TestSealed(t *testing.T) {
	path, p := foundedAt(t), foundedParties
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, err1 := s.Client(t.Context(), p.Client.ID)
	_, err2 := s.ListKeys(t.Context())
	_, err3 := s.Spend(t.Context(), p.Spend(1))
	_, err4 := s.ActivePolicy(t.Context())
	for i, err := range []error{err1, err2, err3, err4, s.UpdateDevice(t.Context(), p.Device, storetest.Note(""))} {
		if !errors.Is(err, store.ErrSealed) || !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if err := s.Append(t.Context(), storetest.Note("")); err != nil {
		t.Error(err)
	}
	if c, err := s.Claims(t.Context()); err != nil || !c.Founded || c.Policy.Version != 1 {
		t.Errorf("claims %+v, %v", c, err)
	}
}

// TestNewerSchema checks that a program accepts the additions of the next release, which the sealed
// list names, unless the list says that the program is too old.
func TestNewerSchema(t *testing.T) {
	known, next := fmt.Sprintf("readable by %d", readableBy), fmt.Sprintf("readable by %d", schemaVersion+1)
	for readable, want := range map[string]string{known: "", next: "run a newer release", "for everybody": "does not know"} {
		path := foundedAt(t)
		s, err := openDatabase(t.Context(), Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unseal(t.Context(), testSeals(), nil); err != nil {
			t.Fatal(err)
		}
		err = s.write(t.Context(), "migrating", func(tx *txn) error {
			for _, statement := range []string{`CREATE TABLE later (x INTEGER) STRICT`, `ALTER TABLE device ADD COLUMN later TEXT`, `PRAGMA user_version = 100`} {
				if _, err := tx.exec(statement); err != nil {
					return err
				}
			}
			return tx.move([]head.Kind{head.Settings}, func(*head.Head) error {
				schema, err := schemaOf(tx)
				if err != nil {
					return err
				}
				text := strings.Replace(string(manifest(schema)), known, readable, 1)
				text = strings.Replace(text, fmt.Sprintf("schema %d", schemaVersion), "schema 100", 1)
				return tx.putSettings(map[string][]byte{schemaSetting: []byte(text)})
			})
		})
		if err = errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		err = unseals(t, path, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", readable, err, want)
		}
	}
}

// TestHeadUnderOldKey checks that a head with mac@2 in force needs a seal of mac@2.
func TestHeadUnderOldKey(t *testing.T) {
	path := foundedAt(t)
	s := openAt(t, path)
	err := s.read(t.Context(), "reading", func(from snapshot, v *vault) error {
		h, err := v.head(from, store.Mark{})
		if err != nil {
			return err
		}
		h.MAC = 2
		seal, err := v.seals.MakeUnder(h.Record(), 1)
		raw(t, path, fmt.Sprintf(`UPDATE head SET body = x'%x', seal = x'%x' WHERE name = 'head'`, h.Marshal(), seal.Bytes()))
		return err
	})
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := unseals(t, path, nil); !errors.Is(err, store.ErrForged) {
		t.Error(err)
	}
}

// TestSchemaUnknown: without the sealed list of its schema a store is forged.
func TestSchemaUnknown(t *testing.T) {
	seals := store.NewSeals(nil)
	v := &vault{seals: seals}
	if err := v.verifySchema(nil, nil); !errors.Is(err, store.ErrForged) || seals.Forged() != 1 {
		t.Errorf("%v, %d alarms", err, seals.Forged())
	}
}

// TestUnderTheHead: a version of mac that seals the head is in use, also after this process has begun to seal
// with another.
func TestUnderTheHead(t *testing.T) {
	s, err := openDatabase(t.Context(), Config{Path: foundedAt(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	seals := testSeals()
	if err := s.Unseal(t.Context(), seals, nil); err != nil {
		t.Fatal(err)
	}
	seals.Use(2)
	if total, under, err := s.Under(t.Context(), 1); err != nil || under == 0 {
		t.Errorf("%d of %d records are under it: %v", under, total, err)
	}
}
