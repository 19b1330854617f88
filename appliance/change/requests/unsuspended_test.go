package requests_test

import (
	"bytes"
	"database/sql"
	"errors"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/rules"
	"countersign/appliance/store"
)

// TestUnsuspended: a request that gave an administrator the vote back is not carried out again
// when an attacker restores its earlier row, with the state as a BLOB.
func TestUnsuspended(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	suspend := func() {
		if _, err := b.Requests.SuspendAdmin(t.Context(), "cat"); err != nil {
			t.Fatal(err)
		}
	}
	suspend()
	ask, err := b.Requests.DraftResume(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	c := b.Taken(ask)
	seal := appliancetest.Column[[]byte](b.Bench, `SELECT seal FROM change WHERE state = 'taken'`)
	if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeExecuted {
		t.Fatal(c.State, c.Reason)
	}
	suspend()
	putBackTaken(b, c.Hash.ID(), seal)
	before := b.Seals.Forged()
	b.Restart()
	b.Requests.Resume(t.Context())
	one, err := b.Quorum.AdminNamed(t.Context(), "cat")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if one.Status == store.Active {
		t.Errorf("cat was suspended, nobody gave him back his vote, and he is %s, version %d; alarms: %d", one.Status, one.Version, b.Seals.Forged()-before)
	}
}

// putBackTaken restores the row of a request as it was while it was taken, with its seal, except
// for the storage class of its state.
func putBackTaken(b *appliancetest.Board, id [8]byte, seal []byte) {
	db, err := sql.Open("sqlite", b.Path+"?_pragma=busy_timeout(5000)")
	if err != nil {
		b.Fatal(err)
	}
	exec := func(statement string, args ...any) {
		if _, err := db.Exec(statement, args...); err != nil {
			b.Fatalf("%s: %v", statement, err)
		}
	}
	db.SetMaxOpenConns(1)
	exec(`PRAGMA writable_schema = 1`)
	exec(`CREATE TEMP TABLE kept AS SELECT * FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'change'`)
	exec(`CREATE TEMP TABLE was AS SELECT sql FROM sqlite_schema WHERE name = 'change'`)
	exec(`DELETE FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'change'`)
	exec(`UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'change'`)
	other, err := sql.Open("sqlite", b.Path+"?_pragma=busy_timeout(5000)&_pragma=ignore_check_constraints(1)")
	if err != nil {
		b.Fatal(err)
	}
	if _, err = other.Exec(`UPDATE change SET state = CAST('taken' AS BLOB), ended_us = NULL, reason = '', required = 2, signed = '["ann","bob"]', seal = ? WHERE id = ?`, seal, id[:]); err != nil {
		b.Fatal(err)
	}
	_ = other.Close()
	exec(`UPDATE sqlite_schema SET sql = (SELECT sql FROM was) WHERE name = 'change'`)
	exec(`INSERT INTO sqlite_schema SELECT * FROM kept`)
	_ = db.Close()
}

// TestOldPolicyAgain: the same for the request of a policy that was replaced.
func TestOldPolicyAgain(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	lax := b.Taken(rules.Draft(appliancetest.QuorumPolicy(appliancetest.TwoOfThree + "\n# lax\n")))
	seal := appliancetest.Column[[]byte](b.Bench, `SELECT seal FROM change WHERE state = 'taken'`)
	if lax = b.Resumed(lax.Hash.ID()); lax.State != store.ChangeExecuted {
		t.Fatal(lax.State, lax.Reason)
	}
	strict := b.Taken(rules.Draft(appliancetest.QuorumPolicy(appliancetest.TwoOfThree + "\n# strict\n")))
	if strict = b.Resumed(strict.Hash.ID()); strict.State != store.ChangeExecuted {
		t.Fatal(strict.State, strict.Reason)
	}
	putBackTaken(b, lax.Hash.ID(), seal)
	before := b.Seals.Forged()
	b.Restart()
	b.Requests.Resume(t.Context())
	now, err := b.Store.ActivePolicy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(now.Document, []byte("# lax")) {
		t.Errorf("the policy that was replaced is in force, as version %d; alarms: %d", now.Version, b.Seals.Forged()-before)
	}
}
