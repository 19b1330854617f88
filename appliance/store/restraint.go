package store

import (
	"cmp"
	"math"
	"slices"
	"time"

	"countersign/protocol"
)

// Restraint is everything that restricts a client, in one sealed record. It exists from enrolment
// on, so that its absence never grants anything.
type Restraint struct {
	Client  protocol.ClientID
	Highest int64       // highest spent counter, -1 when none
	Guard   Guard       // of the password
	Begun   []Challenge // with password attempts, of counters above Highest
	Windows []Window    // what the limits were charged
}

// Challenge counts the password attempts that were begun under one counter.
type Challenge struct {
	_        struct{} `cbor:",toarray"`
	Counter  uint32
	Attempts uint8
}

// Window is the amount and number of approvals charged to one window of a limit, in one currency.
type Window struct {
	_        struct{} `cbor:",toarray"`
	Service  protocol.Service
	Period   uint64 // length, seconds
	Start    int64  // Unix seconds
	Currency string // of the amounts; "" where the service has none
	Amount   uint64 // minor units
	Count    uint64
}

// Attempts returns the number of attempts under a counter.
func (r Restraint) Attempts(counter uint32) int {
	for _, c := range r.Begun {
		if c.Counter == counter {
			return int(c.Attempts)
		}
	}
	return 0
}

// Begin counts one more attempt under a counter.
func (r *Restraint) Begin(counter uint32) {
	r.Begun = slices.Clone(r.Begun)
	i := slices.IndexFunc(r.Begun, func(c Challenge) bool { return c.Counter == counter })
	if i < 0 {
		r.Begun = append(r.Begun, Challenge{Counter: counter, Attempts: 1})
		return
	}
	r.Begun[i].Attempts++
}

// TakeBack removes the newest attempt under a counter, with what it counted for the guard. It
// returns false, and changes nothing, if key is not that attempt, tried did not begin it, or the
// counter is spent.
func (r *Restraint) TakeBack(key AnswerKey, tried Tried) bool {
	counter := key.Serial.Counter()
	n := r.Attempts(counter)
	if tried.Begun == nil || int64(counter) <= r.Highest || n == 0 || n != int(key.Attempt)+1 {
		return false
	}
	r.Guard = r.Guard.without(tried)
	r.Begun = slices.Clone(r.Begun)
	i := slices.IndexFunc(r.Begun, func(c Challenge) bool { return c.Counter == counter })
	if r.Begun[i].Attempts--; r.Begun[i].Attempts == 0 {
		r.Begun = slices.Delete(r.Begun, i, i+1)
	}
	return true
}

// Spend raises the highest counter and drops the challenges at and below it.
func (r *Restraint) Spend(counter uint32) {
	r.Highest = int64(counter)
	r.Begun = slices.DeleteFunc(slices.Clone(r.Begun), func(c Challenge) bool { return int64(c.Counter) <= r.Highest })
}

func (w Window) limitedBy(c Charge) bool {
	return w.Service == c.Service && w.Period == periodOf(c)
}

func (w Window) of(c Charge) bool { return w.limitedBy(c) && w.Start == c.Window.Unix() }

func periodOf(c Charge) uint64 { return uint64(max(c.Period, 0) / time.Second) }

// windowsKept is the number of windows of one limit that are remembered: the current one and the
// one before.
const windowsKept = 2

// Used returns how far the window of a charge is used: amounts in its currency, approvals in all. A
// window older than those remembered is fully used, because the clock has gone back.
func (r Restraint) Used(c Charge) (u Window) {
	newer := map[int64]bool{}
	for _, w := range r.Windows {
		switch {
		case !w.limitedBy(c):
		case w.Start > c.Window.Unix():
			newer[w.Start] = true
		case w.of(c):
			u.Count = sum(u.Count, w.Count)
			if w.Currency == c.Currency {
				u.Amount = sum(u.Amount, w.Amount)
			}
		}
	}
	if len(newer) >= windowsKept {
		return Window{Amount: math.MaxUint64, Count: math.MaxUint64}
	}
	return u
}

func sum(a, b uint64) uint64 {
	if a+b < a {
		return math.MaxUint64
	}
	return a + b
}

// Charge adds charges to their windows and returns those that counted: of several for one window
// only the first counts.
func (r *Restraint) Charge(charges []Charge) (taken []Charge) {
	r.Windows = slices.Clone(r.Windows)
	for i, c := range charges {
		if slices.ContainsFunc(charges[:i], func(earlier Charge) bool { return sameWindow(earlier, c) }) {
			continue
		}
		taken = append(taken, c)
		i := slices.IndexFunc(r.Windows, func(w Window) bool { return w.of(c) && w.Currency == c.Currency })
		if i < 0 {
			i = len(r.Windows)
			r.Windows = append(r.Windows, Window{Service: c.Service, Period: periodOf(c), Start: c.Window.Unix(), Currency: c.Currency})
		}
		w := &r.Windows[i]
		w.Amount, w.Count = sum(w.Amount, c.Amount), sum(w.Count, 1)
		r.forget(c)
	}
	return taken
}

func sameWindow(a, b Charge) bool {
	return a.Service == b.Service && a.Period == b.Period && a.Window.Equal(b.Window)
}

// forget drops the oldest windows of a limit, beyond windowsKept.
func (r *Restraint) forget(c Charge) {
	var starts []int64
	for _, w := range r.Windows {
		if w.limitedBy(c) && !slices.Contains(starts, w.Start) {
			starts = append(starts, w.Start)
		}
	}
	if len(starts) <= windowsKept {
		return
	}
	slices.SortFunc(starts, func(a, b int64) int { return cmp.Compare(b, a) })
	oldest := starts[windowsKept-1]
	r.Windows = slices.DeleteFunc(r.Windows, func(w Window) bool { return w.limitedBy(c) && w.Start < oldest })
}

// GiveBack subtracts charges from their windows, where those are remembered.
func (r *Restraint) GiveBack(charges []Charge) {
	r.Windows = slices.Clone(r.Windows)
	for _, c := range charges {
		for i := range r.Windows {
			if w := &r.Windows[i]; w.of(c) && w.Currency == c.Currency {
				w.Amount, w.Count = w.Amount-min(w.Amount, c.Amount), w.Count-min(w.Count, 1)
			}
		}
	}
}
