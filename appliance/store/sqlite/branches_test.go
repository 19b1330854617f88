package sqlite

// Branches of one database, and rows of no use in it.

import (
	"path/filepath"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// TestRestoredThenBefore checks that the file of a lost host is refused where its backup was
// restored, on a host that never saw the old anchor.
func TestRestoredThenBefore(t *testing.T) {
	s, _, _ := serving(t, &storetest.Anchor{})
	at, lost := filepath.Join(t.TempDir(), "copy.db"), filepath.Join(t.TempDir(), "lost.db")
	raw(t, s.path, `VACUUM INTO '`+at+`'`)
	for _, name := range []string{"carol", "dave", "erin", "frank"} { // after the backup
		i := storetest.NewInvitation(store.KindClient, name)
		if err := s.Invite(t.Context(), i, storetest.Note("")); err != nil {
			t.Fatal(err)
		}
	}
	raw(t, s.path, `VACUUM INTO '`+lost+`'`)
	_ = s.Close()

	a := &storetest.Anchor{} // of the new host
	s, err := openDatabase(t.Context(), Config{Path: at})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unseal(t.Context(), testSeals(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(t.Context(), store.Recovered{At: time.Now(), Revision: a.Floor().Revision}, storetest.Note("restored")); err != nil {
		t.Fatal(err)
	}
	suspendBob(t, s) // answered and anchored on the new host
	_ = s.Close()

	if s, err = openDatabase(t.Context(), Config{Path: lost}); err != nil { // put in the place of the restored one
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	seals := testSeals()
	if err := s.Unseal(t.Context(), seals, a); err == nil {
		t.Errorf("the anchor allows the head of the lost host; bob, suspended since, is %s; alarms: %d", bobOf(t, s).Status, seals.Forged())
		if err := s.EnrolClient(t.Context(), storetest.UseOf(storetest.NewInvitation(store.KindClient, "carol")), storetest.NewClient("carol"), storetest.Note("")); err == nil {
			t.Error("and a code is open that the restore has ended")
		}
	}
}

// TestKeepsMACInForce checks that a row that fits no seal does not keep a version of mac from being
// retired.
func TestKeepsMACInForce(t *testing.T) {
	const rubbish = `'executed', '', 1, 1, 1, '[]', CAST(x'0000000000000001' || zeroblob(32) AS BLOB)`
	for name, plant := range map[string]string{
		"change":     `INSERT INTO change (id, document, state, reason, created_us, expires_us, required, signed, seal) VALUES (x'0102030405060708', x'00', ` + rubbish + `)`,
		"invitation": `INSERT INTO invitation (code, kind, name, display, roles, floor, created_us, expires_us, number, seal) VALUES (zeroblob(32), 'client', 'x', '', '[]', 0, 1, 1, 77, CAST(x'0000000000000001' || zeroblob(32) AS BLOB))`,
	} {
		t.Run(name, func(t *testing.T) {
			s, seals, _ := serving(t, nil)
			rotated(t, s, seals)
			raw(t, s.path, plant)
			if _, _, err := resealAll(t.Context(), s); err != nil {
				t.Error(err)
			}
			if total, under, err := s.Under(t.Context(), 1); err != nil || under > 0 {
				t.Errorf("%d of %d records are under mac@1, which nobody can give up: %v", under, total, err)
			}
		})
	}
}

// TestRubbishStopsReseal checks that a row that fits no seal does not keep other rows from being
// resealed.
func TestRubbishStopsReseal(t *testing.T) {
	for name, plant := range map[string]string{
		"change": `PRAGMA ignore_check_constraints = 1; INSERT INTO change (id, document, state, reason, created_us, expires_us, required, signed, seal)
			VALUES (x'01', x'00', 'executed', '', 1, 1, 1, '[]', zeroblob(40))`,
		"setting": `INSERT INTO setting (name, value, seal) VALUES ('rubbish', x'00', zeroblob(40))`,
	} {
		t.Run(name, func(t *testing.T) {
			s, seals, _ := serving(t, nil)
			raw(t, s.path, plant)
			if _, err := s.ListAdmins(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ListChanges(t.Context(), 9); err != nil {
				t.Fatal(err) // it serves
			}
			if _, err := s.Settings(t.Context()); err != nil {
				t.Fatal(err)
			}
			suspendBob(t, s) // and its head moves
			rotated(t, s, seals)
			if _, _, err := resealAll(t.Context(), s); err != nil {
				t.Errorf("nothing is brought over: %v", err)
			}
			if total, under, err := s.Under(t.Context(), 1); err != nil || under > 0 {
				t.Errorf("%d of %d records are still under mac@1: %v", under, total, err)
			}
		})
	}
}

// TestOldAttempt checks that an old password attempt under an unspent counter is resealed.
func TestOldAttempt(t *testing.T) {
	s, seals, p := serving(t, nil)
	old := p.Attempt(4)
	old.Now = time.Now().Add(-72 * time.Hour)
	if tried, err := s.Try(t.Context(), old); err != nil || tried.Begun == nil {
		t.Fatal(tried, err)
	}
	if err := s.Wrong(t.Context(), old.AnswerKey, 4, storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	rotated(t, s, seals)
	if _, _, err := resealAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, under, err := s.Under(t.Context(), 1); err != nil || under > 0 {
		t.Fatal(under, err) // mac@1 may be given up
	}
	seals.GiveUp(1, true)
	next := p.Attempt(4)
	next.Now, next.Attempt, next.M3 = time.Now(), 1, [32]byte{9}
	if tried, err := s.Try(t.Context(), next); err != nil {
		t.Errorf("the next attempt: %+v, %v; %d alarms", tried, err, seals.Forged())
	}
	if _, err := s.Spend(t.Context(), p.Spend(4)); err != nil {
		t.Errorf("the right password: %v; %d alarms", err, seals.Forged())
	}
	spend := p.Spend(5)
	if _, err := s.Spend(t.Context(), spend); err != nil {
		t.Errorf("the next counter: %v; %d alarms", err, seals.Forged())
	}
}
