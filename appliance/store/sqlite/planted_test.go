package sqlite

import (
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/head"
	"countersign/appliance/store/storetest"
)

const lend = `CREATE TRIGGER lend AFTER INSERT ON record BEGIN UPDATE client SET roles = '["approver"]'; END`

// TestPlantedBeforeFounding checks that a trigger in place before the first seal is not sealed.
func TestPlantedBeforeFounding(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	raw(t, path, lend)
	if s, err = openDatabase(t.Context(), Config{Path: path}); err == nil {
		t.Cleanup(func() { _ = s.Close() })
		err = s.Unseal(t.Context(), testSeals(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = s.AddTrust(t.Context(), store.Trust{}, storetest.Note(""))
	if !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), "trigger lend is foreign") {
		t.Errorf("founded: %v", err)
	}
}

// TestPlantedBeforeMigration does the same in a store of an earlier release.
func TestPlantedBeforeMigration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	p := storetest.Parties{Client: storetest.NewClient("alice"), Device: storetest.NewDevice("door")}
	fillFirst(t, path, p.Spend(7), p)
	raw(t, path, `CREATE TRIGGER lend AFTER DELETE ON invitation BEGIN UPDATE device SET floor = 1; END`)
	_, err := OpenOld(t.Context(), path)
	if !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), "trigger lend is foreign") {
		t.Errorf("opened: %v", err)
	}
}

// TestHeadRemoved checks that a store with records and without a head is refused.
func TestHeadRemoved(t *testing.T) {
	path := foundedAt(t)
	raw(t, path, `DELETE FROM head`)
	if err := unseals(t, path, nil); !errors.Is(err, store.ErrForged) || !strings.Contains(err.Error(), "the head is missing") {
		t.Error(err)
	}
}

// TestReplacedWhileHidden checks that an invitation is replaced even if its row is changed for the
// moment.
func TestReplacedWhileHidden(t *testing.T) {
	for name, c := range map[string]struct{ hide, show string }{
		"renamed": {`UPDATE invitation SET name = 'other' WHERE name = 'bob'`, `UPDATE invitation SET name = 'bob' WHERE name = 'other'`},
		"used":    {`UPDATE invitation SET used_us = 1 WHERE name = 'bob'`, `UPDATE invitation SET used_us = NULL WHERE used_us = 1`},
	} {
		t.Run(name, func(t *testing.T) {
			s, seals := unsealedNew(t)
			leaked, other, next := storetest.NewInvitation(store.KindClient, "bob"), storetest.NewInvitation(store.KindClient, "cat"), storetest.NewInvitation(store.KindClient, "bob")
			next.Replace = true
			_, err := storetest.Seed(t.Context(), s, "alice")
			err = errors.Join(err, s.Invite(t.Context(), leaked, storetest.Note("")), s.Invite(t.Context(), other, storetest.Note("")))
			tamper(t, s, c.hide)
			err = errors.Join(err, s.Invite(t.Context(), next, storetest.Note("")))
			tamper(t, s, c.show)
			if err != nil || seals.Forged() == 0 {
				t.Fatalf("replaced with %d alarms: %v", seals.Forged(), err)
			}
			if err := s.EnrolClient(t.Context(), storetest.UseOf(leaked), storetest.NewClient("bob"), storetest.Note("")); err == nil {
				t.Error("the code that was replaced enrolled a client")
			}
			for i, one := range []store.Invitation{next, other} {
				if err := s.EnrolClient(t.Context(), storetest.UseOf(one), storetest.NewClient(one.Name), storetest.Note("")); err != nil {
					t.Errorf("code %d: %v", i, err)
				}
			}
		})
	}
}

// TestResealBesideForged checks that an ended request that does not fit does not keep other records
// from being resealed.
func TestResealBesideForged(t *testing.T) {
	s, seals := unsealedNew(t)
	if _, err := storetest.Seed(t.Context(), s, "alice"); err != nil {
		t.Fatal(err)
	}
	c := storetest.NewChange()
	end := store.ChangeEnd{ID: c.ID, From: store.ChangeOpen, To: store.ChangeWithdrawn, At: storetest.Epoch}
	if err := errors.Join(s.AddChange(t.Context(), c, storetest.Note("")), s.EndChange(t.Context(), end, storetest.Note(""))); err != nil {
		t.Fatal(err)
	}
	spoil(t, s.path, `UPDATE change_signature SET at_us = at_us + 1`)
	if all, err := s.ListChanges(t.Context(), 10); err != nil || len(all) != 0 || seals.Forged() == 0 {
		t.Errorf("listed %v: %v", all, err)
	}
	rotated(t, s, seals)
	if _, _, err := resealAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, under, err := s.Under(t.Context(), 1); err != nil || under != 0 {
		t.Errorf("%d records are left, and the one that does not fit keeps no key in force: %v", under, err)
	}
	if n, _, err := resealAll(t.Context(), s); err != nil || n != 0 {
		t.Errorf("again: %d, %v", n, err)
	}
}

// TestReadAttemptsPastOldOnes checks that reading continues after a batch of attempts that are
// over.
func TestReadAttemptsPastOldOnes(t *testing.T) {
	s, _ := unsealedNew(t)
	for i, name := range []string{"ann", "bob", "cat"} {
		p, err := storetest.Seed(t.Context(), s, name)
		if err != nil {
			t.Fatal(err)
		}
		a := p.Attempt(1)
		if a.Now = time.Now(); i < 2 {
			a.Now = time.Now().Add(-2 * store.AnswersKept)
		}
		if _, err := s.Try(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	raw(t, s.path, `UPDATE restraint SET highest = 5 WHERE client IN (SELECT ref FROM client WHERE name <> 'cat')`) // overtaken
	err := s.read(t.Context(), "reading", func(from snapshot, _ *vault) error {
		rows, err := readAttempts(from, 0, 2)
		if len(rows) != 1 {
			t.Errorf("%d attempts", len(rows))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestMovedThenFailed checks that the anchor does not learn of a head that a failed operation
// wrote.
func TestMovedThenFailed(t *testing.T) {
	s, err := openDatabase(t.Context(), Config{Path: newPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	a := &storetest.Anchor{}
	if err := errors.Join(s.Unseal(t.Context(), testSeals(), a), s.AddTrust(t.Context(), store.Trust{}, storetest.Note(""))); err != nil {
		t.Fatal(err)
	}
	release := hold(t, s)
	results := make(chan error, 2)
	go func() { results <- s.AddAdmin(t.Context(), storetest.NewAdmin("ann"), storetest.Note("")) }()
	s.waitQueued(1)
	go func() {
		results <- s.write(t.Context(), "failing", func(tx *txn) error {
			err := tx.move([]head.Kind{head.Keys}, func(h *head.Head) error { h.MAC = 2; return nil })
			return errors.Join(err, sql.ErrNoRows)
		})
	}()
	s.waitQueued(2)
	release()
	first, second := <-results, <-results
	if (first == nil) == (second == nil) {
		t.Fatalf("%v, %v: want one error", first, second)
	}
	if a.MAC != 1 || a.Revision != 2 {
		t.Errorf("the anchor has revision %d and mac@%d", a.Revision, a.MAC)
	}
}
