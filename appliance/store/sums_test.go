package store

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

const day = 24 * time.Hour

var morning = time.Date(2026, 3, 1, 9, 36, 0, 0, time.UTC) // begins a bucket of a day

func euros(amount uint64, at time.Time) Charge {
	return Charge{Service: 200, Period: day, At: at, Currency: "EUR", Amount: amount}
}

// TestSlidingExactly compares sums with a list of all approvals: a sum has everything in the window,
// and nothing that left it a bucket's length ago.
func TestSlidingExactly(t *testing.T) {
	for _, period := range []time.Duration{time.Minute, 61 * time.Second, 90 * time.Second, time.Hour, day, 31 * day} {
		var r Restraint
		var all []Charge
		length := (period + 59*time.Second) / 60 / time.Second * time.Second
		random := rand.New(rand.NewPCG(1, uint64(period)))
		now := morning
		for n := range 2000 {
			c := euros(uint64(n), now)
			c.Period = period
			used := r.Used(c)
			var least, most Used
			for _, earlier := range all {
				if age := now.Sub(earlier.At); age < period {
					least.add(earlier.Amount, 1)
					most.add(earlier.Amount, 1)
				} else if age < period+length {
					most.add(earlier.Amount, 1)
				}
			}
			if used.Amount < least.Amount || used.Count < least.Count || used.Amount > most.Amount || used.Count > most.Count {
				t.Fatalf("%s, step %d: %+v, want %+v to %+v", period, n, used, least, most)
			}
			r.Charge([]Charge{c})
			all = append(all, c)
			if len(r.Sums) != 1 || len(r.Sums[0].Buckets) > bucketsKept {
				t.Fatalf("%s, step %d: %d sums, %d buckets", period, n, len(r.Sums), len(r.Sums[0].Buckets))
			}
			now = now.Add(time.Duration(random.Int64N(int64(period / 20)))).Truncate(time.Second)
		}
	}
}

// TestClockSetBack checks that approvals in the future count, and that nothing is lost when the
// clock goes there and back again.
func TestClockSetBack(t *testing.T) {
	var r Restraint
	for n := range 100 {
		r.Charge([]Charge{euros(1, morning.Add(time.Duration(n)*day/60))})
	}
	before := r.Used(euros(0, morning.Add(99*day/60)))
	if before.Amount != 61 {
		t.Fatalf("the window has %+v", before)
	}
	for _, back := range []time.Duration{time.Second, time.Hour, 3 * day, 1000 * day} {
		if u := r.Used(euros(0, morning.Add(99*day/60-back))); u.Amount < before.Amount {
			t.Errorf("%s back: %+v, want %+v or more", back, u, before)
		}
	}
	for n := range 100 { // as many buckets before the others
		at := morning.Add(-1000*day + time.Duration(n)*day/60)
		r.Charge([]Charge{euros(1, at)})
		if u := r.Used(euros(0, at)); u.Amount < before.Amount+uint64(min(n+1, 61)) {
			t.Fatalf("%d approvals after the clock was set back: %+v", n+1, u)
		}
	}
	if n := len(r.Sums[0].Buckets); n > bucketsKept {
		t.Errorf("%d buckets are kept", n)
	}

	r = Restraint{}
	r.Charge([]Charge{euros(5, morning)})
	r.Charge([]Charge{euros(1, morning.Add(2*day))})
	if u := r.Used(euros(0, morning)); u.Amount != 6 {
		t.Errorf("two days ahead and back: %+v", u)
	}
}

// TestSums checks which approvals count together.
func TestSums(t *testing.T) {
	var r Restraint
	taken := r.Charge([]Charge{euros(5, morning), euros(7, morning.Add(time.Minute)), {Service: 200, Period: time.Hour, At: morning.Add(90 * time.Second), Currency: "EUR", Amount: 9}})
	if len(taken) != 2 || !taken[0].At.Equal(morning) || !taken[1].At.Equal(morning.Add(time.Minute)) || taken[0].Amount != 5 {
		t.Errorf("taken: %+v", taken)
	}
	other := euros(0, morning)
	other.Service = 201
	dollars := euros(3, morning)
	dollars.Currency = "USD"
	for c, want := range map[*Charge]Used{
		{Service: 200, Period: day, At: morning, Currency: "EUR"}:       {5, 1},
		{Service: 200, Period: time.Hour, At: morning, Currency: "EUR"}: {9, 1},
		&other:   {},
		&dollars: {0, 1},
	} {
		if got := r.Used(*c); got != want {
			t.Errorf("%+v: %+v, want %+v", *c, got, want)
		}
	}
	copied := r
	r.Charge([]Charge{dollars})
	r.GiveBack(taken[:1])
	if u := r.Used(euros(0, morning)); u != (Used{0, 1}) {
		t.Errorf("given back: %+v", u)
	}
	r.GiveBack([]Charge{euros(9, morning.Add(day)), euros(9, morning)}) // of no bucket, and more than was charged
	if u := r.Used(dollars); u != (Used{3, 1}) {
		t.Errorf("given back twice: %+v", u)
	}
	if u := copied.Used(euros(0, morning)); u != (Used{5, 1}) {
		t.Errorf("a copy changed: %+v", u)
	}
	r.Charge([]Charge{euros(1, morning.Add(3*day))})
	if len(r.Sums) != 1 {
		t.Errorf("%d sums are kept: %+v", len(r.Sums), r.Sums)
	}
}

// TestWindowsOfBefore checks that what an earlier release charged to an aligned window counts as if
// it was charged at the end of it.
func TestWindowsOfBefore(t *testing.T) {
	start := morning.Truncate(day)
	r := Restraint{Windows: []Window{{Service: 200, Period: 86400, Start: start.Unix(), Currency: "EUR", Amount: 900, Count: 3}}}
	for after, want := range map[time.Duration]uint64{0: 900, day: 900, 2*day - time.Second: 900, 2 * day: 0, -day: 900} {
		if u := r.Used(euros(0, start.Add(after))); u.Amount != want {
			t.Errorf("%s after its start: %+v, want %d", after, u, want)
		}
	}
	other := euros(0, start)
	other.Period = time.Hour
	if u := r.Used(other); u != (Used{}) {
		t.Errorf("another window: %+v", u)
	}
	r.Charge([]Charge{euros(50, start.Add(day))})
	r.GiveBack([]Charge{euros(300, start)}) // charged before, and reported now
	if u := r.Used(euros(0, start.Add(day))); u != (Used{650, 3}) {
		t.Errorf("beside a new approval: %+v", u)
	}
	r.Charge([]Charge{euros(1, start.Add(3*day-time.Second))})
	if len(r.Windows) != 1 {
		t.Error("a clock that is set back by a day does not find it any more")
	}
	r.Charge([]Charge{euros(1, start.Add(3*day))})
	if len(r.Windows) != 0 {
		t.Error("it is kept for ever")
	}
}

// TestSumEncoding checks that a sum comes back as it was, in any order, and how long it can get.
func TestSumEncoding(t *testing.T) {
	full := Sum{Service: 200, Period: 86400, Currency: "EUR"}
	for n := range uint64(bucketsKept) {
		full.Buckets = append(full.Buckets, Bucket{Number: 1177777 + n, Amount: 4999 * (n + 1), Count: n + 1})
	}
	for _, s := range []Sum{{}, full, {Buckets: []Bucket{{9, 1, 1}, {3, 2, 2}, {1<<64 - 1, 1<<64 - 1, 0}, {}}}} {
		b, err := cbor.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Sum
		if err := cbor.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%+v came back as %+v, %v", s, back, err)
		}
		again, err := cbor.Marshal(back)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x, then %x, %v", b, again, err)
		}
		if len(b) > 500 {
			t.Errorf("a full day takes %d bytes", len(b))
		}
	}
	for _, bad := range [][]byte{{0x84, 0, 0, 0x60, 0x82, 1, 1}, {0x83, 0, 0, 0x60}, {0x84, 0, 0, 0x60, 0x20}} {
		if err := cbor.Unmarshal(bad, new(Sum)); err == nil {
			t.Errorf("%x was taken", bad)
		}
	}
}
