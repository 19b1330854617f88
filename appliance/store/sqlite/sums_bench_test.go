package sqlite

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
)

// sums are charges of so many windows of about a day, as long after Epoch.
func sums(windows int, after time.Duration) (charges []store.Charge) {
	for n := range windows {
		charges = append(charges, store.Charge{
			Service: 200, Period: 24*time.Hour + time.Duration(n)*time.Second, At: storetest.Epoch.Add(after), Currency: "EUR", Amount: 4999,
		})
	}
	return charges
}

// spread charges so many windows of a client, in so many buckets.
func spread(t testing.TB, s *database, id protocol.ClientID, windows, buckets int) {
	t.Helper()
	err := s.write(t.Context(), "filling", func(tx *txn) error {
		c, err := tx.client(id)
		if err != nil {
			return err
		}
		for n := range buckets {
			c.Charge(sums(windows, time.Duration(n)*25*time.Minute))
		}
		return tx.updateRestraint(c.ref, c.Restraint)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkSpendFull spends in turns by a client with one bucket in each window and by one with all
// of them, and reports the ratio of their times and of their CPU, and the size of the full record.
func BenchmarkSpendFull(b *testing.B) {
	for _, windows := range []int{1, 2, 5} {
		b.Run(fmt.Sprintf("windows=%d", windows), func(b *testing.B) {
			s := openNew(b)
			parties, charges := benchParties(b, s, 2), sums(windows, 60*25*time.Minute)
			spread(b, s, parties[0].Client.ID, windows, 1)
			spread(b, s, parties[1].Client.ID, windows, 61)
			var wall, used [2][]time.Duration
			counter := uint32(0)
			for b.Loop() {
				for kind, p := range parties {
					start, before := time.Now(), cpu(b)
					for n := range uint32(16) {
						spend := p.Spend(counter + n)
						if spend.Charges = charges; kind == 0 {
							spend.Charges = sums(windows, 0) // stays in its bucket
						}
						if out, err := s.Spend(b.Context(), spend); err != nil || out.Reason != 0 {
							b.Fatal(out, err)
						}
					}
					wall[kind], used[kind] = append(wall[kind], time.Since(start)), append(used[kind], cpu(b)-before)
				}
				counter += 16
			}
			var size int
			err := s.write(b.Context(), "measuring", func(t *txn) error {
				return t.row(`SELECT max(length(windows)) FROM restraint`).Scan(&size)
			})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(size), "bytes")
			b.ReportMetric(ratio(wall), "full/one")
			b.ReportMetric(ratio(used), "cpu-full/one")
			b.ReportMetric(float64(median(used[1]).Microseconds())/16, "cpu-µs/op")
		})
	}
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// ratio is the second median by the first.
func ratio(all [2][]time.Duration) float64 {
	return float64(median(all[1])) / float64(median(all[0]))
}

// unknownRatio reads sums of enrolled and of unknown ids in turns, and returns the ratio of their
// median times.
func unknownRatio(t testing.TB, s *database, ids []protocol.ClientID, rounds int) float64 {
	t.Helper()
	var took [2][]time.Duration
	charges := sums(1, 0)
	for n := range rounds {
		var unknown protocol.ClientID
		_, _ = rand.Read(unknown[:]) // never fails, crypto/rand
		for kind, id := range []protocol.ClientID{ids[n%len(ids)], unknown} {
			start := time.Now()
			used, err := s.Used(t.Context(), id, charges)
			took[kind] = append(took[kind], time.Since(start))
			if err != nil || (used[0].Count == 0) != (kind == 1) {
				t.Fatal(id, used, err)
			}
		}
	}
	return ratio(took)
}

// payers enrols clients with full sums.
func payers(t testing.TB, s *database, n int) (ids []protocol.ClientID) {
	t.Helper()
	for i := range n {
		p, err := storetest.Seed(t.Context(), s, fmt.Sprintf("payer%d", i))
		if err != nil {
			t.Fatal(err)
		}
		spread(t, s, p.Client.ID, 1, 61)
		ids = append(ids, p.Client.ID)
	}
	return ids
}

// BenchmarkUsed reads the sums of a client, and reports how much longer an unknown one takes.
func BenchmarkUsed(b *testing.B) {
	s := openNew(b)
	ids := payers(b, s, 64)
	compared := unknownRatio(b, s, ids, 5000)
	for b.Loop() {
		if _, err := s.Used(b.Context(), ids[0], sums(1, 0)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(compared, "unknown/known")
}

// TestUnknownTakesAsLong checks that the time to read sums does not show whether a client exists.
func TestUnknownTakesAsLong(t *testing.T) {
	s := openAt(t, newPath(t))
	ids := payers(t, s, 16)
	if got := unknownRatio(t, s, ids, 1000); got < 0.8 || got > 1.25 {
		t.Errorf("an unknown client takes %.2f times as long", got)
	}
}
