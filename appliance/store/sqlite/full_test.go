package sqlite

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// limitPages limits the size of the file; 0 is its present size.
func limitPages(t *testing.T, s *database, pages int) {
	t.Helper()
	err := s.write(t.Context(), "limiting", func(tx *txn) error {
		if pages == 0 {
			if err := tx.row("PRAGMA page_count").Scan(&pages); err != nil {
				return err
			}
		}
		_, err := tx.exec(fmt.Sprintf("PRAGMA max_page_count = %d", pages))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFull fills the store. The store must answer only stored changes, store nothing in part, and
// continue once there is room.
func TestFull(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	parties := make([]storetest.Parties, 4)
	for i := range parties {
		p, err := storetest.Seed(t.Context(), s, fmt.Sprintf("client%d", i))
		if err != nil {
			t.Fatal(err)
		}
		parties[i] = p
	}
	limitPages(t, s, 0)
	pending := make([]store.Spend, len(parties))
	var wg sync.WaitGroup
	for i, p := range parties {
		wg.Go(func() { pending[i] = spendUntilFull(t, s, p) })
	}
	wg.Wait()
	var want uint64
	for _, spend := range pending {
		want += uint64(spend.Serial.Counter()) // those before were acknowledged
	}
	checkTally(t, s, want)

	limitPages(t, s, 1<<20)
	for _, spend := range pending {
		if out, err := s.Spend(t.Context(), spend); err != nil || out.Reason != 0 || out.Replayed {
			t.Fatalf("after there is room again: %+v, %v", out, err)
		}
		want++
	}
	checkTally(t, s, want)
	select {
	case err := <-s.Fatal():
		t.Fatalf("a full disk is not fatal: %v", err)
	default:
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, path, "PRAGMA integrity_check"); got != "ok" {
		t.Fatal(got)
	}
}

// spendUntilFull returns the first countersignature that failed twice. One that failed once may
// have been too large only together with others.
func spendUntilFull(t *testing.T, s *database, p storetest.Parties) store.Spend {
	for counter := range uint32(10000) {
		spend := p.Spend(counter)
		failed := 0
		for range 2 {
			_, err := s.Spend(t.Context(), spend)
			if err == nil {
				break
			}
			if failed++; !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("in a full store: %v", err)
			}
		}
		if failed == 2 {
			return spend
		}
	}
	t.Error("the store is never full")
	return store.Spend{}
}

// checkTally requires this number of decisions and no surplus record.
func checkTally(t *testing.T, s *database, decisions uint64) {
	t.Helper()
	n, err := s.Tally(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const seeded = 1 + 4*4 // the policy, and two invitations and enrolments each
	if n.Decisions != decisions || n.Records != decisions+seeded {
		t.Fatalf("tally %+v, want %d decisions", n, decisions)
	}
}
