package store

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
)

// Sum is the sum of the approvals of one service in one currency, in the buckets of one sliding window.
// In CBOR it is
//
//	[service, period, currency, [number, amount, count, step, amount, count, …]]
//
// A step is the difference to the number of the bucket before.
type Sum struct {
	Service  protocol.Service
	Period   uint64   // length of the window, seconds
	Currency string   // of the amounts; "" where the service has none
	Buckets  []Bucket // by Number
}

// Bucket is the part of a [Sum] that begins at Number times its length.
type Bucket struct {
	Number uint64
	Amount uint64 // minor units
	Count  uint64
}

// Window is the sum that a release without sums kept for a window that began at Start. The times of its
// approvals are not known, so each counts as if it was made at the end of the window.
type Window struct {
	_        struct{} `cbor:",toarray"`
	Service  protocol.Service
	Period   uint64 // length, seconds
	Start    int64  // Unix seconds
	Currency string // of the amounts; "" where the service has none
	Amount   uint64 // minor units
	Count    uint64
}

// Used is how far a window is used.
type Used struct {
	Amount uint64 // minor units, in the currency of the charge
	Count  uint64 // approvals in any currency
}

func (u *Used) add(amount, count uint64) {
	u.Amount, u.Count = sum(u.Amount, amount), sum(u.Count, count)
}

func sum(a, b uint64) uint64 {
	if a+b < a {
		return math.MaxUint64
	}
	return a + b
}

// bucketsKept is the number of buckets of a sum that are remembered. A window has 60, and one more
// that is partly out of it.
const bucketsKept = 61

// bucketLength returns the length of the buckets of a window, in seconds: 60 of them cover the window.
func bucketLength(period uint64) uint64 { return max((period+bucketsKept-2)/(bucketsKept-1), 1) }

// bucketOf returns the number of the bucket that contains a time.
func bucketOf(at time.Time, period uint64) uint64 {
	return uint64(max(at.Unix(), 0)) / bucketLength(period)
}

func periodOf(c Charge) uint64 { return uint64(max(c.Period, 0) / time.Second) }

// reaches reports whether the end of a part of time is in the period before now, or in the future: then
// the clock was set back.
func reaches(start int64, length, period uint64, now time.Time) bool {
	return start+int64(length)+int64(period) > now.Unix()
}

func (w Window) of(c Charge) bool { return w.Service == c.Service && w.Period == periodOf(c) }

func (w Window) reaches(period uint64, now time.Time) bool {
	return reaches(w.Start, w.Period, period, now)
}

func (s Sum) of(c Charge) bool { return s.Service == c.Service && s.Period == periodOf(c) }

func (s Sum) reaches(b Bucket, period uint64, now time.Time) bool {
	length := bucketLength(s.Period)
	return reaches(int64(b.Number*length), length, period, now)
}

// Used returns how far the window of a charge is used at its time: amounts in its currency,
// approvals in all.
func (r Restraint) Used(c Charge) (u Used) {
	count := func(currency string, amount, n uint64) {
		if currency != c.Currency {
			amount = 0
		}
		u.add(amount, n)
	}
	for _, w := range r.Windows {
		if w.of(c) && w.reaches(w.Period, c.At) {
			count(w.Currency, w.Amount, w.Count)
		}
	}
	for _, s := range r.Sums {
		for _, b := range s.Buckets {
			if s.of(c) && s.reaches(b, s.Period, c.At) {
				count(s.Currency, b.Amount, b.Count)
			}
		}
	}
	return u
}

// Charge adds charges to their sums and returns those that counted, each at the start of its bucket:
// of several for one window only the first counts.
func (r *Restraint) Charge(charges []Charge) (taken []Charge) {
	r.Windows, r.Sums = slices.Clone(r.Windows), slices.Clone(r.Sums)
	for i, c := range charges {
		if slices.ContainsFunc(charges[:i], func(earlier Charge) bool { return sameWindow(earlier, c) }) {
			continue
		}
		r.sumOf(c).charge(c)
		r.forget(c.At)
		period := periodOf(c)
		c.At = time.Unix(int64(bucketOf(c.At, period)*bucketLength(period)), 0).UTC()
		taken = append(taken, c)
	}
	return taken
}

func sameWindow(a, b Charge) bool { return a.Service == b.Service && a.Period == b.Period }

// sumOf returns the sum that a charge belongs to.
func (r *Restraint) sumOf(c Charge) *Sum {
	i := slices.IndexFunc(r.Sums, func(s Sum) bool { return s.of(c) && s.Currency == c.Currency })
	if i < 0 {
		i = len(r.Sums)
		r.Sums = append(r.Sums, Sum{Service: c.Service, Period: periodOf(c), Currency: c.Currency})
	}
	return &r.Sums[i]
}

// find returns the place of a charge's bucket, and whether it is there.
func (s *Sum) find(c Charge) (int, bool) {
	return slices.BinarySearchFunc(s.Buckets, bucketOf(c.At, s.Period), func(b Bucket, n uint64) int {
		switch {
		case b.Number < n:
			return -1
		case b.Number > n:
			return 1
		default:
			return 0
		}
	})
}

// charge adds a charge to its bucket. If there are too many buckets, it forgets the oldest. If the oldest
// is still in the window, because the clock was set back, it is added to the next one.
func (s *Sum) charge(c Charge) {
	s.Buckets = slices.Clone(s.Buckets)
	i, found := s.find(c)
	if !found {
		s.Buckets = slices.Insert(s.Buckets, i, Bucket{Number: bucketOf(c.At, s.Period)})
	}
	b := &s.Buckets[i]
	b.Amount, b.Count = sum(b.Amount, c.Amount), sum(b.Count, 1)
	if len(s.Buckets) <= bucketsKept {
		return
	}
	if oldest, next := s.Buckets[0], &s.Buckets[1]; s.reaches(oldest, s.Period, c.At) {
		next.Amount, next.Count = sum(next.Amount, oldest.Amount), sum(next.Count, oldest.Count)
	}
	s.Buckets = slices.Delete(s.Buckets, 0, 1)
}

// forget drops what left its window at least a whole window ago. Until then a clock that is set back
// finds it.
func (r *Restraint) forget(now time.Time) {
	r.Windows = slices.DeleteFunc(r.Windows, func(w Window) bool { return !w.reaches(2*w.Period, now) })
	for i := range r.Sums {
		s := &r.Sums[i]
		gone := func(b Bucket) bool { return !s.reaches(b, 2*s.Period, now) }
		if slices.ContainsFunc(s.Buckets, gone) {
			s.Buckets = slices.DeleteFunc(slices.Clone(s.Buckets), gone)
		}
	}
	r.Sums = slices.DeleteFunc(r.Sums, func(s Sum) bool { return len(s.Buckets) == 0 })
}

// GiveBack subtracts charges from the buckets that they were added to, if these are remembered. A charge
// at the start of a [Window] was made by a release without sums.
func (r *Restraint) GiveBack(charges []Charge) {
	r.Windows, r.Sums = slices.Clone(r.Windows), slices.Clone(r.Sums)
	for _, c := range charges {
		amount, count := r.charged(c)
		if amount == nil {
			continue
		}
		*amount, *count = *amount-min(*amount, c.Amount), *count-min(*count, 1)
	}
}

// charged returns the amount and count that a charge was added to, or nil if they are forgotten.
func (r *Restraint) charged(c Charge) (amount, count *uint64) {
	for i := range r.Windows {
		if w := &r.Windows[i]; w.of(c) && w.Currency == c.Currency && w.Start == c.At.Unix() {
			return &w.Amount, &w.Count
		}
	}
	for i := range r.Sums {
		s := &r.Sums[i]
		if !s.of(c) || s.Currency != c.Currency {
			continue
		}
		if at, found := s.find(c); found {
			s.Buckets = slices.Clone(s.Buckets)
			return &s.Buckets[at].Amount, &s.Buckets[at].Count
		}
	}
	return nil, nil
}

type sumWire struct {
	_        struct{} `cbor:",toarray"`
	Service  protocol.Service
	Period   uint64
	Currency string
	Buckets  []uint64
}

// MarshalCBOR implements [cbor.Marshaler].
func (s Sum) MarshalCBOR() ([]byte, error) {
	w := sumWire{Service: s.Service, Period: s.Period, Currency: s.Currency, Buckets: make([]uint64, 0, 3*len(s.Buckets))}
	before := uint64(0)
	for _, b := range s.Buckets {
		w.Buckets = append(w.Buckets, b.Number-before, b.Amount, b.Count)
		before = b.Number
	}
	return cbor.Marshal(w)
}

// UnmarshalCBOR implements [cbor.Unmarshaler].
func (s *Sum) UnmarshalCBOR(b []byte) error {
	var w sumWire
	if err := cbor.Unmarshal(b, &w); err != nil {
		return err
	}
	if len(w.Buckets)%3 != 0 {
		return errors.New("a bucket is not complete")
	}
	*s = Sum{Service: w.Service, Period: w.Period, Currency: w.Currency}
	number := uint64(0)
	for ; len(w.Buckets) > 0; w.Buckets = w.Buckets[3:] {
		number += w.Buckets[0]
		s.Buckets = append(s.Buckets, Bucket{Number: number, Amount: w.Buckets[1], Count: w.Buckets[2]})
	}
	return nil
}
