package storetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

var concurrencyTests = map[string]func(*testing.T, *fixture){
	"ConcurrentRepeats":   testConcurrentRepeats,
	"ConcurrentClones":    testConcurrentClones,
	"ConcurrentSerials":   testConcurrentSerials,
	"ConcurrentLimit":     testConcurrentLimit,
	"ConcurrentEnrol":     testConcurrentEnrol,
	"FailureAmongOthers":  testFailureAmongOthers,
	"Cancelled":           testCancelled,
	"CounterNeverFalls":   testCounterNeverFalls,
	"ConcurrentAnswering": testConcurrentAnswering,
}

// together runs do n times at once and returns what each gave.
func together[T any](n int, do func(i int) T) []T {
	got := make([]T, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			got[i] = do(i)
		})
	}
	close(start)
	wg.Wait()
	return got
}

type answer struct {
	out store.Outcome
	err error
}

func (f *fixture) spendTogether(spends []store.Spend) []answer {
	f.t.Helper()
	got := together(len(spends), func(i int) answer {
		out, err := f.Spend(f.t.Context(), spends[i])
		return answer{out, err}
	})
	for _, a := range got {
		f.must(a.err)
	}
	return got
}

func testConcurrentRepeats(t *testing.T, f *fixture) {
	s := f.p.charged(1, daily(10, 1000, 1))
	spends := make([]store.Spend, 100)
	for i := range spends {
		spends[i] = s
		spends[i].Salt = audit.NewSalt()
		random(spends[i].Decision.Transaction[:])
	}
	before := f.tally()
	fresh := 0
	answers := f.spendTogether(spends)
	for _, a := range answers {
		if !a.out.Replayed {
			fresh++
		}
		a.out.Replayed = false
		want := answers[0].out
		want.Replayed = false
		f.same(a.out, want)
	}
	if fresh != 1 {
		t.Fatalf("%d of 100 identical countersignatures were decided", fresh)
	}
	before.Decisions++
	before.Records++
	f.same(f.tally(), before)
}

func testConcurrentClones(t *testing.T, f *fixture) {
	spends := make([]store.Spend, 50)
	for i := range spends {
		spends[i] = f.p.Spend(1)
	}
	reasons := map[protocol.Code]int{}
	for _, a := range f.spendTogether(spends) {
		reasons[a.out.Reason]++
	}
	if reasons[0] != 1 || reasons[protocol.CodeClone] != 49 {
		t.Fatalf("reasons of 50 serials of one counter: %v", reasons)
	}
	if n := f.tally().Decisions; n != 1 {
		t.Fatalf("%d decisions", n)
	}
}

func testConcurrentSerials(t *testing.T, f *fixture) {
	spends := make([]store.Spend, 200)
	for i := range spends {
		spends[i] = f.p.Spend(uint32(i))
	}
	approved := uint64(0)
	for i, a := range f.spendTogether(spends) {
		switch {
		case a.out.Reason == 0:
			approved++
		case a.out.Reason != protocol.CodeSerial:
			t.Errorf("serial %d: reason %v", i, a.out.Reason)
		}
	}
	if got := f.highest(); got != 199 {
		t.Fatalf("highest counter is %d, want 199", got)
	}
	if n := f.tally().Decisions; n != approved || n == 0 {
		t.Fatalf("%d decisions, %d approved", n, approved)
	}
}

// The countersignatures of one client share its limits on all devices.
func testConcurrentLimit(t *testing.T, f *fixture) {
	var next uint32
	var mu sync.Mutex
	approved := together(8, func(int) (n int) {
		for range 25 {
			mu.Lock() // a client sends one at a time
			next++
			out, err := f.Spend(t.Context(), f.p.charged(next, daily(10, 420, 0)))
			mu.Unlock()
			if err == nil && out.Reason == 0 {
				n++
			}
		}
		return n
	})
	sum := 0
	for _, n := range approved {
		sum += n
	}
	if sum != 42 {
		t.Fatalf("%d approvals of 10 under a limit of 420", sum)
	}
}

func testConcurrentEnrol(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindClient, "bob")
	f.must(f.Invite(t.Context(), i, Note("")))
	enrolled := 0
	for _, err := range together(20, func(int) error {
		return f.EnrolClient(t.Context(), UseOf(i), NewClient("bob"), Note(""))
	}) {
		if err == nil {
			enrolled++
		} else {
			f.fails(err, store.ErrUsed)
		}
	}
	if enrolled != 1 {
		t.Fatalf("%d clients enrolled with one code", enrolled)
	}
}

// Operations that are committed together fail alone.
func testFailureAmongOthers(t *testing.T, f *fixture) {
	before := f.tally()
	var want uint64
	for i, err := range together(90, func(i int) error {
		switch i % 3 {
		case 0:
			return f.UpdateClient(t.Context(), NewClient("nobody"), Note("fails"))
		case 1:
			s := f.p.Spend(0)
			s.Decision.Device[0]++
			_, err := f.Spend(t.Context(), s)
			return err
		default:
			return f.Append(t.Context(), Note("stays"))
		}
	}) {
		if i%3 != 2 {
			f.fails(err, store.ErrNotFound)
			continue
		}
		f.must(err)
		want++
	}
	before.Records += want
	f.same(f.tally(), before)
}

func testCancelled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.unchanged(context.Canceled, func() error { return f.Append(ctx, Note("never")) })
	f.unchanged(context.Canceled, func() error {
		_, err := f.Spend(ctx, f.p.Spend(1))
		return err
	})
	_, err := f.Client(ctx, f.p.Client.ID)
	f.fails(err, context.Canceled)

	// Cancelled at any moment: a caller without an answer finds the outcome by key.
	spends := make([]store.Spend, 100)
	for i := range spends {
		spends[i] = f.p.Spend(uint32(i))
	}
	got := together(len(spends), func(i int) answer {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		out, err := f.Spend(ctx, spends[i])
		return answer{out, err}
	})
	f.approves(f.p.Spend(1000)) // behind all that was begun and is not waited for
	for i, a := range got {
		stored, err := f.Answered(t.Context(), spends[i].AnswerKey)
		switch {
		case a.err != nil:
			f.fails(a.err, context.Canceled)
		case a.out.Reason == 0:
			f.must(err)
			a.out.Replayed = true
			f.same(stored, a.out)
		default:
			f.fails(err, store.ErrNotFound)
		}
	}
}

// Under any interleaving of spends, clones, repeats, updates and reports a
// client's highest counter only rises, and no counter has two decisions.
func testCounterNeverFalls(t *testing.T, f *fixture) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	errs := together(6, func(worker int) error {
		r := rand.New(rand.NewPCG(seed, uint64(worker)))
		last, mine := int64(-1), []store.Spend{}
		for range 60 {
			if err := f.step(r, &mine); err != nil {
				return err
			}
			c, err := f.Client(t.Context(), f.p.Client.ID)
			if err != nil {
				return err
			}
			if c.Highest < last {
				t.Errorf("highest counter fell from %d to %d", last, c.Highest)
			}
			last = c.Highest
		}
		return nil
	})
	f.must(errors.Join(errs...))
}

// step does something at random; mine are the countersignatures that were sent.
func (f *fixture) step(r *rand.Rand, mine *[]store.Spend) error {
	ctx := f.t.Context()
	switch n := r.IntN(10); {
	case n < 6 || len(*mine) == 0:
		s := f.p.charged(uint32(r.IntN(200)), daily(uint64(r.IntN(100)), 5000, 0))
		*mine = append(*mine, s)
		_, err := f.Spend(ctx, s)
		return err
	case n < 8:
		old := (*mine)[r.IntN(len(*mine))]
		_, err := f.Spend(ctx, old)
		return err
	case n < 9:
		old := (*mine)[r.IntN(len(*mine))]
		err := f.Report(ctx, reportOf(old, r.IntN(2) == 0), Note(""))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	default:
		c, err := f.Client(ctx, f.p.Client.ID)
		if err != nil {
			return err
		}
		c.Version, c.Highest = c.Version+1, -1
		err = f.UpdateClient(ctx, c, Note(""))
		if errors.Is(err, store.ErrConflict) {
			return nil
		}
		return err
	}
}

// An outcome that was returned is there for every reader.
func testConcurrentAnswering(t *testing.T, f *fixture) {
	others := make([]Parties, 16)
	for i := range others {
		q, err := Seed(t.Context(), f.Store, "client"+string(rune('a'+i)))
		f.must(err)
		others[i] = q
	}
	errs := together(len(others), func(i int) error {
		for counter := range uint32(10) {
			s := others[i].Spend(counter)
			out, err := f.Spend(t.Context(), s)
			if err != nil {
				return err
			}
			got, err := f.Answered(t.Context(), s.AnswerKey)
			if err != nil {
				return err
			}
			if got.Decision.Transaction != out.Decision.Transaction {
				t.Errorf("answered %v, stored %v", out.Decision.Transaction, got.Decision.Transaction)
			}
		}
		return nil
	})
	f.must(errors.Join(errs...))
}
