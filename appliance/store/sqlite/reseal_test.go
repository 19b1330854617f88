package sqlite

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
)

// rotated gives a store a second version of mac, which new seals use from then on.
func rotated(t testing.TB, s *database, seals *store.Seals) {
	t.Helper()
	seals.Add(2, append(make([]byte, 31), 2), false)
	if err := s.ChangeKeys(t.Context(), store.KeyChange{MAC: 2}, storetest.Note("mac@2")); err != nil {
		t.Fatal(err)
	}
}

// resealAll reseals all records, and counts records and batches.
func resealAll(ctx context.Context, s *database) (records, batches int, err error) {
	var at store.Cursor
	for done := false; !done && err == nil; batches++ {
		var n int
		at, n, done, err = s.Reseal(ctx, at, 500, func(n int) audit.Record { return storetest.Note(fmt.Sprint(n)) })
		records += n
	}
	return records, batches, err
}

// TestReseal checks that every record in force is resealed, that records that do not fit stay as
// they are, and that the version before covers only old decisions afterwards.
func TestReseal(t *testing.T) {
	s, seals := unsealedNew(t)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	q, err := storetest.Seed(t.Context(), s, "bob")
	if err != nil {
		t.Fatal(err)
	}
	old, young := p.Spend(1), p.Spend(2)
	young.Now = time.Now()
	a := p.Attempt(3)
	a.Now = time.Now()
	gone := p.Spend(0)
	_, fourth := s.Spend(t.Context(), gone)
	_, first := s.Spend(t.Context(), old)
	_, second := s.Spend(t.Context(), young)
	_, third := s.Try(t.Context(), a)
	if err := errors.Join(first, second, third, fourth, s.AddAdmin(t.Context(), storetest.NewAdmin("ann"), storetest.Note("")), s.AddChange(t.Context(), storetest.NewChange(), storetest.Note(""))); err != nil {
		t.Fatal(err)
	}
	tamper(t, s, `UPDATE device SET floor = 4 WHERE name = 'bob-door'`)
	rotated(t, s, seals)
	total, under, err := s.Under(t.Context(), 1)
	if err != nil || under == 0 || under >= total { // the head and its records are resealed already
		t.Fatalf("%d of %d records are under mac@1: %v", under, total, err)
	}
	forged := seals.Forged()
	if _, _, err := resealAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if seals.Forged() == forged {
		t.Error("a record that does not fit raised no alarm")
	}
	if _, under, err := s.Under(t.Context(), 1); err != nil || under != 0 {
		t.Errorf("%d records are left under mac@1, and the forged one keeps no key in force: %v", under, err)
	}
	seals.GiveUp(1, true)
	if _, err := s.Client(t.Context(), p.Client.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Device(t.Context(), q.Device.ID); !errors.Is(err, store.ErrForged) {
		t.Errorf("the forged device: %v", err)
	}
	if _, err := s.Answered(t.Context(), young.AnswerKey); err != nil {
		t.Errorf("a decision in force: %v", err)
	}
	if _, err := s.Answered(t.Context(), old.AnswerKey); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a decision that only mac@1 vouches for is answered: %v", err)
	}
	report := store.Report{Device: p.Device.ID, Transaction: old.Decision.Transaction, At: time.Now()}
	if err := s.Report(t.Context(), report, storetest.Note("")); err != nil {
		t.Errorf("a report on an old decision: %v", err)
	}
	seals.Remove(1)
	before := seals.Forged()
	report = store.Report{Device: p.Device.ID, Transaction: gone.Decision.Transaction, At: time.Now()}
	if err := s.Report(t.Context(), report, storetest.Note("")); !errors.Is(err, store.ErrNotFound) || seals.Forged() != before {
		t.Errorf("a report on a decision that nothing vouches for: %v, %d alarms", err, seals.Forged()-before)
	}
	if _, err := s.Answered(t.Context(), gone.AnswerKey); !errors.Is(err, store.ErrNotFound) || seals.Forged() != before {
		t.Errorf("a decision that nothing vouches for is answered: %v, %d alarms", err, seals.Forged()-before)
	}
	if _, err := s.Spend(t.Context(), gone); err != nil {
		t.Errorf("its serial again: %v", err)
	}
	if records, batches, err := resealAll(t.Context(), s); err != nil || records != 0 {
		t.Errorf("again: %d records in %d batches: %v", records, batches, err)
	}
}

func unsealedNew(t testing.TB) (*database, *store.Seals) {
	t.Helper()
	s, err := openDatabase(t.Context(), Config{Path: newPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	seals, err := storetest.Unseal(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return s, seals
}

// tamper runs a statement without the knowledge of the store.
func tamper(t testing.TB, s *database, statement string, args ...any) {
	t.Helper()
	err := s.w.submit(t.Context(), func(tx *txn) error {
		_, err := tx.exec(statement, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// BenchmarkReseal rotates mac in a store of 100,000 clients and a million decisions of the
// last two days, while phones spend serials all the time: seconds for the whole, and
// operations of the phones meanwhile.
func BenchmarkReseal(b *testing.B) {
	const clients, decisions = 100_000, 1_000_000
	for b.Loop() {
		b.StopTimer()
		s, seals := unsealedNew(b)
		phones := benchParties(b, s, 16)
		fill(b, s, clients, decisions/clients)
		rotated(b, s, seals)
		stop := spendOnAndOn(b, s, phones)
		b.StartTimer()
		began := time.Now()
		records, batches, err := resealAll(b.Context(), s)
		took := time.Since(began)
		b.StopTimer()
		load := stop()
		if err != nil || records < clients*2+decisions {
			b.Fatalf("%d records: %v", records, err)
		}
		b.ReportMetric(took.Seconds(), "s/rotation")
		b.ReportMetric(float64(records), "records")
		b.ReportMetric(float64(batches), "batches")
		b.ReportMetric(float64(load)/took.Seconds(), "approvals/s")
		b.StartTimer()
	}
}

// fill stores so many clients with so many decisions each, in large groups.
func fill(b *testing.B, s *database, clients, each int) {
	b.Helper()
	const group = 500
	for from := 0; from < clients; from += group {
		err := s.w.submit(b.Context(), func(t *txn) error {
			for i := from; i < from+group; i++ {
				c := storetest.NewClient(fmt.Sprintf("c%06d", i))
				c.Highest = int64(each)
				if err := t.insertClient(c); err != nil {
					return err
				}
				var ref int64
				if err := t.row(`SELECT ref FROM client WHERE id = ?`, c.ID[:]).Scan(&ref); err != nil {
					return err
				}
				p := storetest.Parties{Client: c, Device: storetest.NewDevice("d")}
				for n := range each {
					spend := p.Spend(uint32(n))
					out := store.Outcome{Result: protocol.ResultApproved, Decision: spend.Decision, At: store.Stamp(time.Now())}
					if err := t.insertDecision(ref, store.Kept{Spent: store.Spent{AnswerKey: spend.AnswerKey, Outcome: out}}); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// spendOnAndOn makes each party spend until stop, which returns the number of approvals.
func spendOnAndOn(b *testing.B, s *database, all []storetest.Parties) (stop func() int64) {
	b.Helper()
	var n atomic.Int64
	var over atomic.Bool
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			for counter := uint32(1); !over.Load(); counter++ {
				spend := p.Spend(counter)
				spend.Now = time.Now()
				out, err := s.Spend(context.Background(), spend)
				if err != nil || out.Reason != 0 {
					b.Errorf("spending meanwhile: %+v, %v", out, err)
					return
				}
				n.Add(1)
			}
		})
	}
	return func() int64 {
		over.Store(true)
		wg.Wait()
		return n.Load()
	}
}
