package sqlite

// Attacks by a program that can write the SQLite file but has no key.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
)

// behindSchema runs statements on the file under another schema, and restores sqlite_schema byte
// for byte. Indexes, STRICT and triggers do not apply meanwhile, and no cookie changes. Writing to
// the pages directly has the same effect.
func behindSchema(t *testing.T, path string, edit []string, body ...string) {
	t.Helper()
	type row struct {
		id, root          int64
		kind, name, table string
		sql               sql.NullString
	}
	var saved []row
	conn := func(do func(*sql.DB)) {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		db.SetMaxOpenConns(1)
		do(db)
	}
	exec := func(db *sql.DB, statement string, args ...any) {
		if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	conn(func(db *sql.DB) {
		rows, err := db.QueryContext(t.Context(), `SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rowid`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.id, &r.kind, &r.name, &r.table, &r.root, &r.sql); err != nil {
				t.Fatal(err)
			}
			saved = append(saved, r)
		}
		_ = rows.Close()
		exec(db, `PRAGMA writable_schema = 1`)
		for _, s := range edit {
			exec(db, s)
		}
	})
	conn(func(db *sql.DB) {
		exec(db, `PRAGMA foreign_keys = 0`)
		exec(db, `PRAGMA ignore_check_constraints = 1`)
		for _, s := range body {
			exec(db, s)
		}
	})
	conn(func(db *sql.DB) {
		exec(db, `PRAGMA writable_schema = 1`)
		exec(db, `DELETE FROM sqlite_schema`)
		for _, r := range saved {
			exec(db, `INSERT INTO sqlite_schema (rowid, type, name, tbl_name, rootpage, sql) VALUES (?, ?, ?, ?, ?, ?)`, r.id, r.kind, r.name, r.table, r.root, r.sql)
		}
	})
}

// loosen removes uniqueness, STRICT and triggers from a table.
func loosen(table string) []string {
	return []string{
		fmt.Sprintf(`DELETE FROM sqlite_schema WHERE tbl_name = '%s' AND type IN ('trigger', 'index')`, table),
		fmt.Sprintf(`UPDATE sqlite_schema SET sql = replace(replace(replace(replace(sql, 'BLOB    PRIMARY KEY', 'BLOB'), 'TEXT PRIMARY KEY', 'TEXT'), 'UNIQUE', ''), ') STRICT', ')') WHERE name = '%s'`, table),
	}
}

// serving returns an unsealed store with administrators ann and bob, and its seals.
func serving(t *testing.T, a store.Anchor) (*database, *store.Seals, storetest.Parties) {
	t.Helper()
	path := foundedAt(t)
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	seals := testSeals()
	if err := s.Unseal(t.Context(), seals, a); err != nil {
		t.Fatal(err)
	}
	return s, seals, foundedParties
}

func bobOf(t *testing.T, s *database) store.Admin {
	t.Helper()
	all, err := s.ListAdmins(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if a.Name == "bob" {
			return a
		}
	}
	t.Fatal("no bob")
	return store.Admin{}
}

func suspendBob(t *testing.T, s *database) {
	t.Helper()
	bob := bobOf(t, s)
	bob.Status, bob.Version = store.Suspended, bob.Version+1
	if err := s.UpdateAdmin(t.Context(), bob, storetest.Note("bob is suspended")); err != nil {
		t.Fatal(err)
	}
}

// lender is a trigger that restores administrator bob, with his seal, within the transaction that
// suspends him, before the digest of the head is made.
func lender(t *testing.T, path string) string {
	t.Helper()
	seal := ask(t, path, `SELECT hex(seal) FROM admin WHERE name = 'bob'`)
	return fmt.Sprintf(`CREATE TRIGGER lend AFTER UPDATE OF status ON admin BEGIN UPDATE admin SET status = 1, version = 1, seal = x'%s' WHERE name = 'bob'; END`, seal)
}

// TestSchemaCookie checks that a noticed trigger stays noticed after the schema number is reset.
func TestSchemaCookie(t *testing.T) {
	s, seals, _ := serving(t, nil)
	cookie := ask(t, s.path, "PRAGMA schema_version")
	raw(t, s.path, lender(t, s.path))
	if err := s.Append(t.Context(), storetest.Note("")); !errors.Is(err, store.ErrForged) {
		t.Fatalf("the trigger is not noticed: %v", err)
	}
	raw(t, s.path, "PRAGMA schema_version = "+cookie)
	if err := s.Append(t.Context(), storetest.Note("")); err == nil {
		t.Error("the store writes again, with a foreign trigger")
	}
	before := seals.Forged()
	bob := bobOf(t, s)
	bob.Status, bob.Version = store.Suspended, 2
	if err := s.UpdateAdmin(t.Context(), bob, storetest.Note("bob is suspended")); err != nil {
		return // refused: it holds
	}
	if bob := bobOf(t, s); bob.Status == store.Active {
		t.Errorf("bob was suspended, the audit says so, and he is %s; further alarms: %d", bob.Status, seals.Forged()-before)
	}
	raw(t, s.path, "DROP TRIGGER lend; PRAGMA schema_version = "+cookie)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unseals(t, s.path, nil); err == nil {
		t.Error("and after a restart the head vouches for him")
	}
}

// TestSchemaBeforeUnseal checks that a trigger that is removed between opening and unsealing does
// not run.
func TestSchemaBeforeUnseal(t *testing.T) {
	path := foundedAt(t)
	cookie := ask(t, path, "PRAGMA schema_version")
	raw(t, path, lender(t, path)+"; PRAGMA schema_version = "+cookie)
	s, err := openDatabase(t.Context(), Config{Path: path}) // locked: it waits for the PIN
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	raw(t, path, "BEGIN; DROP TRIGGER lend; PRAGMA schema_version = "+cookie+"; COMMIT")
	seals := testSeals()
	if err := s.Unseal(t.Context(), seals, nil); err != nil {
		t.Fatal(err)
	}
	suspendBob(t, s)
	if bob := bobOf(t, s); bob.Status == store.Active {
		t.Errorf("bob was suspended and is %s; alarms: %d", bob.Status, seals.Forged())
	}
}

// TestIndexOfAdmins checks that an old row in only one index is no administrator.
func TestIndexOfAdmins(t *testing.T) {
	s, seals, _ := serving(t, nil)
	raw(t, s.path, `CREATE TABLE kept AS SELECT * FROM admin WHERE name = 'bob'`) // the attacker's notebook
	raw(t, s.path, `ATTACH '`+s.path+`.notes' AS notes; CREATE TABLE notes.old AS SELECT * FROM admin WHERE name = 'bob'; DROP TABLE kept; PRAGMA schema_version = `+fmt.Sprint(s.vault.Load().cookie))
	suspendBob(t, s)
	raw(t, s.path, `ATTACH '`+s.path+`.notes' AS notes; CREATE TABLE notes.new AS SELECT * FROM admin WHERE name = 'bob'`)
	attach := `ATTACH '` + s.path + `.notes' AS notes`
	// With the index of names alone: the row of today goes, the one of before comes.
	onlyNames := append([]string{
		`UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_admin_2') WHERE name = 'sqlite_autoindex_admin_1'`,
		`DELETE FROM sqlite_schema WHERE name IN ('sqlite_autoindex_admin_2', 'sqlite_autoindex_admin_3') OR tbl_name = 'admin' AND type = 'trigger'`,
	}, `UPDATE sqlite_schema SET sql = replace(replace(replace(sql, 'BLOB    PRIMARY KEY', 'BLOB'), 'BLOB    NOT NULL UNIQUE', 'BLOB'), ') STRICT', ')') WHERE name = 'admin'`)
	behindSchema(t, s.path, onlyNames, attach, `DELETE FROM admin WHERE name = 'bob'`, `INSERT INTO admin SELECT * FROM notes.old`, `UPDATE admin SET rowid = 99 WHERE name = 'bob'`)
	// Without any index: the row of today comes back, where the index of ids has it.
	behindSchema(t, s.path, loosen("admin"), attach, `INSERT INTO admin SELECT * FROM notes.new`, `UPDATE admin SET rowid = 2 WHERE name = 'bob' AND status = 2`)
	before := seals.Forged()
	all, err := s.ListAdmins(t.Context())
	for _, a := range all {
		if a.Name == "bob" && a.Status == store.Active {
			t.Errorf("bob was suspended and is %s again; alarms: %d", a.Status, seals.Forged()-before)
		}
	}
	t.Log(len(all), err)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unseals(t, s.path, nil); err == nil {
		t.Error("it is unsealed after a restart")
	}
}

// TestIndexOfSettings checks that an old row outside the index of names is no setting.
func TestIndexOfSettings(t *testing.T) {
	s, seals, _ := serving(t, nil)
	put := func(value string) {
		if err := s.ChangeKeys(t.Context(), store.KeyChange{Settings: map[string][]byte{"handle_epoch": []byte(value)}}, storetest.Note("")); err != nil {
			t.Fatal(err)
		}
	}
	put("old")
	seal := ask(t, s.path, `SELECT hex(seal) FROM setting WHERE name = 'handle_epoch'`)
	put("new")
	behindSchema(t, s.path, loosen("setting"), `INSERT INTO setting (rowid, name, value, seal) VALUES (999, 'handle_epoch', x'`+fmt.Sprintf("%x", "old")+`', x'`+seal+`')`)
	before := seals.Forged()
	if m, err := s.Settings(t.Context()); err == nil && string(m["handle_epoch"]) == "old" {
		t.Errorf("the setting is %q again; alarms: %d", m["handle_epoch"], seals.Forged()-before)
	}
	if _, forged, err := s.Verify(t.Context()); err != nil || len(forged) == 0 {
		t.Errorf("doctor finds %v, %v", forged, err)
	}
}

// takenOnce returns a change request that was executed, and the seal of its row while it was taken.
func takenOnce(t *testing.T, s *database) (id [8]byte, seal string) {
	t.Helper()
	c := storetest.NewChange()
	taken := store.ChangeEnd{ID: c.ID, From: store.ChangeOpen, To: store.ChangeTaken, Required: 1, Signed: []string{"local"}, At: storetest.Epoch}
	err := s.AddChange(t.Context(), c, storetest.Note(""))
	if err = errors.Join(err, s.EndChange(t.Context(), taken, storetest.Note(""))); err != nil {
		t.Fatal(err)
	}
	seal = ask(t, s.path, `SELECT hex(seal) FROM change`) // it stays in the log for long
	taken.From, taken.To = store.ChangeTaken, store.ChangeExecuted
	if err := s.EndChange(t.Context(), taken, storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	return c.ID, seal
}

// TestTypeOfState checks that a request whose state is stored as a BLOB is not resumed.
func TestTypeOfState(t *testing.T) {
	s, seals, _ := serving(t, nil)
	id, seal := takenOnce(t, s)
	behindSchema(t, s.path, loosen("change"), `UPDATE change SET state = CAST('taken' AS BLOB), ended_us = NULL, seal = x'`+seal+`'`)
	before := seals.Forged()
	all, err := s.ListChanges(t.Context(), 10)
	if err == nil && len(all) == 1 && all[0].State == store.ChangeTaken {
		t.Errorf("a request that was executed is %s again, and is gone on with; alarms: %d", all[0].State, seals.Forged()-before)
	}
	if one, err := s.Change(t.Context(), id); err == nil && one.State == store.ChangeTaken {
		t.Errorf("by its id too")
	}
	if _, forged, err := s.Verify(t.Context()); err != nil || len(forged) == 0 {
		t.Errorf("doctor finds %v, %v", forged, err)
	}
}

// TestIndexOfChanges checks that an old row outside the index of ids is no request.
func TestIndexOfChanges(t *testing.T) {
	s, seals, _ := serving(t, nil)
	_, seal := takenOnce(t, s)
	behindSchema(t, s.path, loosen("change"),
		`INSERT INTO change (ref, id, document, state, reason, created_us, expires_us, ended_us, required, signed, seal)
			SELECT ref + 1, id, document, 'taken', reason, created_us, expires_us, NULL, required, signed, x'`+seal+`' FROM change`)
	behindSchema(t, s.path, nil, `INSERT INTO change_signature SELECT change + 1, signer, signature, at_us FROM change_signature`)
	before := seals.Forged()
	all, err := s.ListChanges(t.Context(), 10)
	if err == nil && len(all) > 0 && all[0].State == store.ChangeTaken {
		t.Errorf("a request that was executed is %s again; alarms: %d", all[0].State, seals.Forged()-before)
	}
	t.Log(len(all), err)
}

// TestOverIsOver checks that a request that was executed is not in force again when its earlier row
// comes back, although the store no longer reads the rows of requests that are over. Looking it up
// raises the alarm.
func TestOverIsOver(t *testing.T) {
	s, seals, _ := serving(t, nil)
	id, seal := takenOnce(t, s)
	if all, err := s.ChangesInForce(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("%d requests are in force: %v", len(all), err)
	}
	behindSchema(t, s.path, loosen("change"), `UPDATE change SET state = 'taken', ended_us = NULL, seal = x'`+seal+`'`)
	if all, err := s.ChangesInForce(t.Context()); err == nil && len(all) != 0 {
		t.Errorf("in force again: %+v", all)
	}
	before := seals.Forged()
	if c, err := s.Change(t.Context(), id); err == nil || seals.Forged() == before {
		t.Errorf("it is %s, with %d alarms: %v", c.State, seals.Forged()-before, err)
	}
	if _, forged, err := s.Verify(t.Context()); err != nil || len(forged) == 0 {
		t.Errorf("doctor finds %v, %v", forged, err)
	}
	again := store.ChangeEnd{ID: id, From: store.ChangeTaken, To: store.ChangeExecuted, At: storetest.Epoch}
	if err := s.EndChange(t.Context(), again, storetest.Note("")); err == nil {
		t.Error("it ended twice")
	}
}

// TestForked checks that a branch of the database that began while the anchor could not be written
// is refused once the anchor knows another head. No group moves the head twice, so a branch is at
// most one revision ahead of the anchor.
func TestForked(t *testing.T) {
	for name, add := range map[string]func(*database) []error{
		"one after the other": func(s *database) (errs []error) {
			for _, name := range []string{"carol", "dave", "erin"} {
				errs = append(errs, s.AddAdmin(t.Context(), storetest.NewAdmin(name), storetest.Note("")))
			}
			return errs
		},
		"in one group": func(s *database) []error {
			release := hold(t, s)
			added := make(chan error)
			for _, name := range []string{"carol", "dave"} {
				go func() { added <- s.AddAdmin(context.Background(), storetest.NewAdmin(name), storetest.Note("")) }()
			}
			s.waitQueued(2)
			release()
			return []error{<-added, <-added}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := &storetest.Anchor{}
			s, _, _ := serving(t, a)
			before, branch := filepath.Join(t.TempDir(), "before.db"), filepath.Join(t.TempDir(), "branch.db")
			raw(t, s.path, `VACUUM INTO '`+before+`'`)
			a.Full = true
			for _, err := range add(s) {
				if !errors.Is(err, store.ErrUnavailable) {
					t.Fatal(err)
				}
			}
			raw(t, s.path, `VACUUM INTO '`+branch+`'`)
			_ = s.Close()
			a.Full = false
			s = unsealedAt(t, before, a)
			suspendBob(t, s) // durable, answered and anchored
			_ = s.Close()
			s, err := openDatabase(t.Context(), Config{Path: branch})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			seals := testSeals()
			if err := s.Unseal(t.Context(), seals, a); err == nil && bobOf(t, s).Status == store.Active {
				t.Errorf("bob was suspended, answered and anchored, and is active again; alarms: %d", seals.Forged())
			}
		})
	}
}

// unsealedAt opens and unseals a store until the end of the test.
func unsealedAt(t *testing.T, path string, a store.Anchor) *database {
	t.Helper()
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Unseal(t.Context(), testSeals(), a); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestNumbersAfterRestore checks that an invitation unknown to the restored copy never opens again:
// its number is not reused.
func TestNumbersAfterRestore(t *testing.T) {
	s, _, _ := serving(t, nil)
	at := filepath.Join(t.TempDir(), "copy.db")
	raw(t, s.path, `VACUUM INTO '`+at+`'`)
	carol := storetest.NewInvitation(store.KindClient, "carol")
	if err := s.Invite(t.Context(), carol, storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	notes := filepath.Join(t.TempDir(), "notes.db")
	raw(t, s.path, `ATTACH '`+notes+`' AS n; CREATE TABLE n.i AS SELECT * FROM invitation WHERE name = 'carol'`)
	if err := s.EnrolClient(t.Context(), storetest.UseOf(carol), storetest.NewClient("carol"), storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	_ = s.Close() // the token is lost, and the appliance restored from the copy
	s, err := openDatabase(t.Context(), Config{Path: at})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	seals := testSeals()
	if err := s.Unseal(t.Context(), seals, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(t.Context(), store.Recovered{At: storetest.Epoch.Add(time.Second), Revision: 1000}, storetest.Note("restored")); err != nil {
		t.Fatal(err)
	}
	dave := storetest.NewInvitation(store.KindClient, "dave")
	dave.CreatedAt = storetest.Epoch.Add(2 * time.Second)
	if err := s.Invite(t.Context(), dave, storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	raw(t, at, `ATTACH '`+notes+`' AS n; INSERT INTO invitation SELECT * FROM n.i`)
	if err := s.EnrolClient(t.Context(), storetest.UseOf(carol), storetest.NewClient("carol"), storetest.Note("")); err == nil {
		t.Errorf("enrolled by a code of before the restore, which was used, and which restore says it has ended; alarms: %d", seals.Forged())
	}
}

// TestGivenUpSealAnswers checks that a decision under a version of mac that was given up answers
// nothing, even with an old date.
func TestGivenUpSealAnswers(t *testing.T) {
	s, seals, p := serving(t, nil)
	rotated(t, s, seals)
	if _, _, err := resealAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	seals.GiveUp(1, true)
	c, err := s.Client(t.Context(), p.Client.ID)
	if err != nil {
		t.Fatal(err)
	}
	c.Status, c.Version = store.Suspended, c.Version+1
	if err := s.UpdateClient(t.Context(), c, storetest.Note("suspended")); err != nil {
		t.Fatal(err)
	}
	spend := p.Spend(5)
	spend.Now = time.Now()
	out := spend.Unopposed()
	out.At = store.Stamp(time.Now().Add(-72 * time.Hour))
	seal, err := seals.MakeUnder(store.Kept{Spent: store.Spent{AnswerKey: spend.AnswerKey, Outcome: out}}, 1) // the attacker has that key
	if err != nil {
		t.Fatal(err)
	}
	raw(t, s.path, fmt.Sprintf(`INSERT INTO decision (client, counter, random, attempt, m3, transaction_id, result, reason, payload, decided_us, dry, seal)
		SELECT ref, 5, x'%x', 0, x'%x', x'%x', 1, 0, x'%x', %d, 0, x'%x' FROM client WHERE name = 'alice'`,
		spend.Serial[4:], spend.M3[:], out.Decision.Transaction[:], out.Decision.Marshal(), out.At.UnixMicro(), seal.Bytes()))
	if got, err := s.Spend(t.Context(), spend); err == nil && got.Result == out.Result {
		t.Errorf("a suspended client is answered result %d, reason %d; alarms: %d", got.Result, got.Reason, seals.Forged())
	}
}

// TestViewForReaders checks that a view in place of a table, which shows an old row now and then,
// restores no old row.
func TestViewForReaders(t *testing.T) {
	s, seals, _ := serving(t, nil)
	old := ask(t, s.path, `SELECT hex(seal) FROM admin WHERE name = 'bob'`)
	suspendBob(t, s)
	raw(t, s.path, `PRAGMA legacy_alter_table = 1; ALTER TABLE admin RENAME TO admin_; CREATE VIEW admin AS
		SELECT id, name, public, iif(r, 1, status) AS status, iif(r, 1, version) AS version, created_us, change, iif(r, x'`+old+`', seal) AS seal FROM
		(SELECT a.*, name = 'bob' AND q AS r FROM (SELECT random() % 2 = 0 AS q LIMIT 1) CROSS JOIN admin_ a LIMIT 100)`)
	for i := range 60 {
		if all, err := s.ListAdmins(t.Context()); err == nil {
			for _, a := range all {
				if a.Name == "bob" && a.Status == store.Active {
					t.Fatalf("bob was suspended and is %s, at reading %d; alarms: %d", a.Status, i+1, seals.Forged())
				}
			}
		}
	}
}

// TestHiddenFromDoctor checks that Reseal and Verify reach rows below row 0 too.
func TestHiddenFromDoctor(t *testing.T) {
	s, seals, p := serving(t, nil)
	spoil(t, s.path, "PRAGMA foreign_keys = 0", `UPDATE restraint SET client = -5`, `UPDATE client SET ref = -5`)
	if _, err := s.Client(t.Context(), p.Client.ID); err != nil {
		t.Fatal(err)
	}
	rotated(t, s, seals)
	if _, _, err := resealAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if total, under, err := s.Under(t.Context(), 1); err == nil && under > 0 {
		t.Errorf("%d of %d records are never brought over: mac@1 cannot be retired", under, total)
	}
	raw(t, s.path, `UPDATE client SET seal = zeroblob(40)`)
	if n, forged, err := s.Verify(t.Context()); err != nil || len(forged) == 0 {
		t.Errorf("doctor does not see a forged row: %d records, %v, %v", n, forged, err)
	}
}

// TestDecisionRemoved checks that an approved serial stays spent without its row. A phone that asks
// learns that it was denied, which SECURITY.md concedes.
func TestDecisionRemoved(t *testing.T) {
	s, _, p := serving(t, nil)
	first := p.Spend(5)
	if out, err := s.Spend(t.Context(), first); err != nil || out.Result != protocol.ResultApproved {
		t.Fatal(out, err)
	}
	raw(t, s.path, `DELETE FROM decision`)
	if out, err := s.Spend(t.Context(), first); err != nil || out.Result != protocol.ResultDenied || out.Replayed {
		t.Errorf("its serial again: %+v, %v", out, err)
	}
	status := p.Spend(6)
	status.Asks = &first.Serial
	if out, err := s.Spend(t.Context(), status); err != nil || out.Asked == nil || out.Asked.Result != protocol.ResultDenied {
		t.Errorf("asked about it: %+v, %v", out, err)
	}
}

// TestClientHidden shows the effect of hiding a row for a moment, which SECURITY.md concedes: two
// clients of one name, each with its own key, both serve.
func TestClientHidden(t *testing.T) {
	s, seals, p := serving(t, nil)
	i, other := storetest.NewInvitation(store.KindClient, "alice"), storetest.NewClient("alice")
	tamper(t, s, `UPDATE client SET name = 'hidden' WHERE name = 'alice'`)
	err := errors.Join(s.Invite(t.Context(), i, storetest.Note("")), s.EnrolClient(t.Context(), storetest.UseOf(i), other, storetest.Note("")))
	if err != nil {
		t.Fatal(err)
	}
	behindSchema(t, s.path, loosen("client"), `UPDATE client SET name = 'alice' WHERE name = 'hidden'`)
	for _, id := range []protocol.ClientID{p.Client.ID, other.ID} {
		if c, err := s.Client(t.Context(), id); err != nil || c.Name != "alice" {
			t.Errorf("client %s: %+v, %v; %d alarms", id, c, err, seals.Forged())
		}
	}
}

// TestWriteThatMissed checks that a suspension that an index led past its row is not acknowledged.
func TestWriteThatMissed(t *testing.T) {
	s, seals, _ := serving(t, nil)
	bob := bobOf(t, s)
	raw(t, s.path, `UPDATE admin SET id = x'0102030405060708' WHERE name = 'bob'`)
	behindSchema(t, s.path, loosen("admin"), fmt.Sprintf(`UPDATE admin SET id = x'%x' WHERE name = 'bob'`, bob.ID[:]))
	bob.Status, bob.Version = store.Suspended, bob.Version+1
	if err := s.UpdateAdmin(t.Context(), bob, storetest.Note("")); !errors.Is(err, store.ErrForged) || seals.Forged() == 0 {
		t.Errorf("suspended: %v, %d alarms", err, seals.Forged())
	}
	if bob := bobOf(t, s); bob.Status != store.Active {
		t.Errorf("bob is %s", bob.Status)
	}
}

// TestSchemaBehindCookie checks that a trigger is noticed if its transaction also resets the schema
// number.
func TestSchemaBehindCookie(t *testing.T) {
	s, _, _ := serving(t, nil)
	cookie := ask(t, s.path, "PRAGMA schema_version")
	raw(t, s.path, "BEGIN; "+lender(t, s.path)+"; PRAGMA schema_version = "+cookie+"; COMMIT")
	if err := s.Append(t.Context(), storetest.Note("")); !errors.Is(err, store.ErrForged) {
		t.Errorf("appended: %v", err)
	}
}

// TestOtherWriter checks that writes of another program that leave the schema alone do not stop the
// store.
func TestOtherWriter(t *testing.T) {
	s, _, p := serving(t, nil)
	raw(t, s.path, `UPDATE device SET floor = floor + 1`)
	if err := s.Append(t.Context(), storetest.Note("")); err != nil {
		t.Error(err)
	}
	if _, err := s.Device(t.Context(), p.Device.ID); !errors.Is(err, store.ErrForged) {
		t.Error(err)
	}
}

// TestStorageClass checks that a value of another storage class raises the alarm, even if Go would
// read the same value.
func TestStorageClass(t *testing.T) {
	for _, column := range []string{"client.name", "client.roles", "client.status", "restraint.highest", "restraint.wrong", "device.display", "device.floor", "admin.name"} {
		table, name, _ := strings.Cut(column, ".")
		s, seals, p := serving(t, nil)
		behindSchema(t, s.path, loosen(table), fmt.Sprintf(`UPDATE %s SET %s = CAST(%[2]s AS BLOB)`, table, name))
		_, err := s.Client(t.Context(), p.Client.ID)
		_, err2 := s.Device(t.Context(), p.Device.ID)
		_, err3 := s.ListAdmins(t.Context())
		if err := errors.Join(err, err2, err3); !errors.Is(err, store.ErrForged) || seals.Forged() == 0 {
			t.Errorf("%s: %v, %d alarms", column, err, seals.Forged())
		}
	}
}
