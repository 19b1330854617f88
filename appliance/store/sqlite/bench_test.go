package sqlite

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/appliance/store/storetest"
)

// BenchmarkSpend spends serials of 256 clients, so many at once: durable
// operations per second, and CPU of the whole process for each.
func BenchmarkSpend(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := openNew(b)
			parties := benchParties(b, s, 256)
			b.ResetTimer()
			before := cpu(b)
			var next atomic.Int64
			var wg sync.WaitGroup
			for caller := range callers {
				wg.Go(func() {
					// a client is one caller's, as a phone sends one at a time
					mine := parties[caller*len(parties)/callers : (caller+1)*len(parties)/callers]
					for i := 0; next.Add(1) <= int64(b.N); i++ {
						spend := mine[i%len(mine)].Spend(uint32(i / len(mine)))
						if out, err := s.Spend(b.Context(), spend); err != nil || out.Reason != 0 {
							b.Errorf("spending: %+v, %v", out, err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func benchParties(b *testing.B, s *database, n int) []storetest.Parties {
	b.Helper()
	all := make([]storetest.Parties, n)
	for i := range all {
		p, err := storetest.Seed(b.Context(), s, fmt.Sprintf("client%d", i))
		if err != nil {
			b.Fatal(err)
		}
		all[i] = p
	}
	return all
}

// cpu is the processor time of this process, user and system.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRead(b *testing.B) {
	s := openNew(b)
	p := benchParties(b, s, 1)[0]
	spend := p.Spend(1)
	if _, err := s.Spend(b.Context(), spend); err != nil {
		b.Fatal(err)
	}
	b.Run("Client", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Client(b.Context(), p.Client.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Answered", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Answered(b.Context(), spend.AnswerKey); err != nil {
				b.Fatal(err)
			}
		}
	})
}
