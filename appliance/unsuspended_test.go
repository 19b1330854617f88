package appliance_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/protocol/derive"
)

// TestUnsuspended: a request that gave an administrator his vote back is not carried out again
// when its row of before is put back, with the state as a BLOB.
func TestUnsuspended(t *testing.T) {
	b := newBoard(t, twoOfThree)
	suspend := func() {
		if _, err := b.SuspendAdmin(t.Context(), "cat"); err != nil {
			t.Fatal(err)
		}
	}
	suspend()
	ask, err := b.AskResume(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	c := b.taken(ask)
	seal := column[[]byte](b.bench, `SELECT seal FROM change WHERE state = 'taken'`)
	if c = b.resumed(c.Hash.ID()); c.State != store.ChangeExecuted {
		t.Fatal(c.State, c.Reason)
	}
	suspend()
	b.putBackTaken(c.Hash.ID(), seal)
	before := b.seals.Forged()
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	b.restart()
	b.Appliance.Run(ctx)
	one, err := b.AdminNamed(t.Context(), "cat")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if one.Status == store.Active {
		t.Errorf("cat was suspended, nobody gave him back his vote, and he is %s, version %d; alarms: %d", one.Status, one.Version, b.seals.Forged()-before)
	}
}

// putBackTaken makes a request what it was while it was taken, seal and all, but for the type of
// its state in the file.
func (b *board) putBackTaken(id [8]byte, seal []byte) {
	db, err := sql.Open("sqlite", b.path+"?_pragma=busy_timeout(5000)")
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
	other, err := sql.Open("sqlite", b.path+"?_pragma=busy_timeout(5000)&_pragma=ignore_check_constraints(1)")
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

// TestOldPolicyAgain: the same for the request that applied a policy which was replaced.
func TestOldPolicyAgain(t *testing.T) {
	b := newBoard(t, twoOfThree)
	lax := b.taken(appliance.AskPolicy(quorumPolicy(twoOfThree + "\n# lax\n")))
	seal := column[[]byte](b.bench, `SELECT seal FROM change WHERE state = 'taken'`)
	if lax = b.resumed(lax.Hash.ID()); lax.State != store.ChangeExecuted {
		t.Fatal(lax.State, lax.Reason)
	}
	strict := b.taken(appliance.AskPolicy(quorumPolicy(twoOfThree + "\n# strict\n")))
	if strict = b.resumed(strict.Hash.ID()); strict.State != store.ChangeExecuted {
		t.Fatal(strict.State, strict.Reason)
	}
	b.putBackTaken(lax.Hash.ID(), seal)
	before := b.seals.Forged()
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	b.restart()
	b.Appliance.Run(ctx)
	now, err := b.store.ActivePolicy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(now.Document, []byte("# lax")) {
		t.Errorf("the policy that was replaced is in force, as version %d; alarms: %d", now.Version, b.seals.Forged()-before)
	}
}

// TestCompromisedMAC: a database that was sealed by a version of mac which was given up is not
// taken as one of the next version, though its rows say that both are one key.
func TestCompromisedMAC(t *testing.T) {
	b := newBench(t)
	b.step("rotate", "mac")
	b.step("activate", "mac@2")
	claims, err := b.store.Claims(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var one, two *store.Key
	for i := range claims.Keys {
		switch k := &claims.Keys[i]; {
		case k.Name == keyring.MAC && k.Version == 1:
			one = k
		case k.Name == keyring.MAC && k.Version == 2:
			two = k
		}
	}
	if one == nil || two == nil || two.ActivatedAt.IsZero() {
		t.Fatalf("%+v %+v", one, two)
	}
	leaked, err := b.token.MAC(t.Context(), one.ID, derive.SealKeyInput())
	if err != nil {
		t.Fatal(err)
	}
	one.CompromisedAt = b.clock.Now() // whether or not the row says so
	two.ID = one.ID
	path := filepath.Join(t.TempDir(), "forged.db")
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	seals := store.NewSeals(nil)
	seals.Add(2, leaked, false)
	seals.Use(2)
	trust := store.Trust{Keys: claims.Keys, Settings: claims.Settings, Policy: claims.Policy}
	rec := audit.NewRecord(audit.KindCeremony, "trust", nil)
	err = errors.Join(s.Unseal(t.Context(), seals, nil), s.AddTrust(t.Context(), trust, rec))
	for range 100 {
		err = errors.Join(err, s.ChangeKeys(t.Context(), store.KeyChange{MAC: 2}, rec))
	}
	mallory := store.Admin{ID: [8]byte{1}, Name: "mallory", Status: store.Active, Version: 1, CreatedAt: b.clock.Now()}
	if err = errors.Join(err, s.AddAdmin(t.Context(), mallory, rec), s.Close()); err != nil {
		t.Fatal(err)
	}
	// The daemon starts on it, with the token, the anchor and the root as they are.
	if s, err = sqlite.Open(t.Context(), sqlite.Config{Path: path}); err != nil {
		t.Fatal(err)
	}
	settings, err := keyring.ParseSettings(claims.Settings)
	if err != nil {
		t.Fatal(err)
	}
	at, err := chain.Anchor(settings)
	if err != nil {
		t.Fatal(err)
	}
	at.Revision, at.MAC = 20, 2
	pins := keyuse.Pins{Anchor: anchor.InMemory(at), Root: b.keys.Root()}
	genuine := store.NewSeals(func(err error) { t.Log("alarm:", err) })
	if err := keyuse.Unseal(t.Context(), b.token, s, genuine, pins); err != nil {
		t.Log(err)
		return
	}
	keys, err := keyuse.Load(t.Context(), b.token, s, pins)
	if err == nil {
		err = errors.Join(keys.Keep(t.Context(), genuine), keylife.SelfTest(t.Context(), keys, b.clock.Now()))
	}
	all, _ := s.ListAdmins(t.Context())
	if err == nil && len(all) == 1 {
		t.Errorf("a whole database that was sealed by mac@1 is taken as of mac@2, with administrator %s", all[0].Name)
	}
	t.Log(err)
}
