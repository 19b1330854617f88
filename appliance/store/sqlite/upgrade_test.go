package sqlite

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/head"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
)

// before is what a program of schema 8 left: the window of a day that is used up, and a decision that
// was charged to it. It runs more statements before it seals the list of the schema.
func before(t *testing.T, path string, more ...string) (storetest.Parties, store.Spend) {
	t.Helper()
	s := openAt(t, path)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	spent := p.Spend(1)
	start := storetest.Epoch.Truncate(24 * time.Hour)
	used := store.Window{Service: 200, Period: 86400, Start: start.Unix(), Currency: "EUR", Amount: 1000, Count: 2}
	err = s.write(t.Context(), "charging", func(tx *txn) error {
		c, err := tx.client(p.Client.ID)
		if err != nil {
			return err
		}
		c.Restraint.Spend(1)
		c.Windows = []store.Window{used}
		charged := store.Charge{Service: 200, Period: 24 * time.Hour, At: start, Currency: "EUR", Amount: 400}
		return errors.Join(tx.updateRestraint(c.ref, c.Restraint), tx.insertDecision(c.ref, store.Kept{
			Spent: store.Spent{AnswerKey: spent.AnswerKey, Outcome: spent.Unopposed()}, Charges: []store.Charge{charged},
		}))
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.write(t.Context(), "going back", func(tx *txn) error {
		for _, statement := range append(more, `PRAGMA user_version = 8`, `DELETE FROM goose_db_version WHERE version_id = 9`) {
			if _, err := tx.exec(statement); err != nil {
				return err
			}
		}
		return tx.move([]head.Kind{head.Settings}, func(*head.Head) error {
			schema, err := schemaOf(tx)
			if err != nil {
				return err
			}
			text := strings.Replace(string(manifest(schema)), "schema 9 readable by 9", "schema 8 readable by 8", 1)
			return tx.putSettings(map[string][]byte{schemaSetting: []byte(text)})
		})
	})
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return p, spent
}

// day is a charge of euros, as long after Epoch.
func day(amount uint64, after time.Duration) []store.Charge {
	return []store.Charge{{
		Service: 200, Period: 24 * time.Hour, At: storetest.Epoch.Add(after), Currency: "EUR", Amount: amount, AmountLimit: 1000,
	}}
}

// TestUpgrade checks that a store of schema 8 serves, that nothing is charged before it is upgraded,
// that its windows go on counting until a whole window after their end, and that programs that know
// schema 8 refuse it then.
func TestUpgrade(t *testing.T) {
	path := newPath(t)
	p, spent := before(t, path)
	s := openAt(t, path)
	const sealed = `SELECT CAST(value AS TEXT) FROM setting WHERE name = 'schema'`
	if first, _, _ := strings.Cut(ask(t, path, sealed), "\n"); first != "schema 8 readable by 8" {
		t.Fatalf("opening it has written %q", first)
	}
	spend := p.Spend(2)
	spend.Charges = day(1, 0)
	if out, err := s.Spend(t.Context(), spend); err != nil || out.Reason != protocol.CodeLimit {
		t.Errorf("over what was used: %+v, %v", out, err)
	}
	spend = p.Spend(3)
	spend.Charges = day(1, 72*time.Hour)
	if out, err := s.Spend(t.Context(), spend); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("a sum in a store that earlier programs read: %+v, %v", out, err)
	}
	tally, err := s.Tally(t.Context())
	for range 2 { // the second time it does nothing
		err = errors.Join(err, s.Upgrade(t.Context(), storetest.Note("upgraded")))
	}
	after, more := s.Tally(t.Context())
	if err = errors.Join(err, more); err != nil || after.Records != tally.Records+1 {
		t.Fatalf("%d records, then %d, %v", tally.Records, after.Records, err)
	}
	// 12 hours are left of the day, and then a whole one.
	for counter, step := range []struct {
		amount uint64
		after  time.Duration
		reason protocol.Code
	}{
		{1, 0, protocol.CodeLimit},
		{1, 36*time.Hour - 2*time.Second, protocol.CodeLimit},
		{1000, 36 * time.Hour, 0},
		{1, 36 * time.Hour, protocol.CodeLimit},
	} {
		spend := p.Spend(uint32(4 + counter))
		spend.Charges = day(step.amount, step.after)
		if out, err := s.Spend(t.Context(), spend); err != nil || out.Reason != step.reason {
			t.Errorf("%d after %s: %+v, %v; want %d", step.amount, step.after, out, err, step.reason)
		}
	}
	report := store.Report{Device: p.Device.ID, Transaction: spent.Decision.Transaction, At: storetest.Epoch}
	if err := s.Report(t.Context(), report, storetest.Note("not performed")); err != nil {
		t.Fatal(err)
	}
	if used, err := s.Used(t.Context(), p.Client.ID, day(0, 0)); err != nil || !reflect.DeepEqual(used, []store.Used{{Amount: 1600, Count: 2}}) {
		t.Errorf("given back by a decision of before: %+v, %v", used, err)
	}
	if n, forged, err := s.Verify(t.Context()); err != nil || len(forged) != 0 || n == 0 {
		t.Errorf("%d records, %v, %v", n, forged, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"PRAGMA user_version": "9", "SELECT max(version_id) FROM goose_db_version": "9", "SELECT count(*) FROM goose_db_version WHERE version_id = 9": "1",
	} {
		if got := ask(t, path, query); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	s = openAt(t, path)
	version, readable, _, err := parseManifest([]byte(ask(t, path, sealed)))
	if err != nil || version != 9 || readable != 9 {
		t.Errorf("schema %d is readable by %d, %v", version, readable, err)
	}
	spend = p.Spend(20)
	spend.Charges = day(1, 200*time.Hour)
	if out, err := s.Spend(t.Context(), spend); err != nil || out.Reason != 0 {
		t.Errorf("after it was opened again: %+v, %v", out, err)
	}
}

// TestUpgradeRefusesForeign checks that Upgrade seals only the schema that this program makes, even if
// the sealed list of before has more.
func TestUpgradeRefusesForeign(t *testing.T) {
	path := newPath(t)
	before(t, path, `CREATE TABLE foreigner (x INTEGER)`)
	s := openAt(t, path)
	if err := s.Upgrade(t.Context(), storetest.Note("upgraded")); !errors.Is(err, store.ErrForged) {
		t.Errorf("a foreign table was sealed: %v", err)
	}
}

// TestUsedForged checks that a record that was changed has no sums, and that the alarm for the
// record of another client is no error.
func TestUsedForged(t *testing.T) {
	s, _, p := serving(t, nil)
	q, err := storetest.Seed(t.Context(), s, "bert")
	if err != nil {
		t.Fatal(err)
	}
	spoil(t, s.path, `UPDATE restraint SET highest = highest + 1`)
	for _, id := range []protocol.ClientID{p.Client.ID, q.Client.ID} {
		if used, err := s.Used(t.Context(), id, day(0, 0)); !errors.Is(err, store.ErrForged) {
			t.Errorf("%+v, %v", used, err)
		}
	}
	if used, err := s.Used(t.Context(), protocol.ClientID{9}, day(0, 0)); err != nil || !reflect.DeepEqual(used, []store.Used{{}}) {
		t.Errorf("an unknown client: %+v, %v", used, err)
	}
}
