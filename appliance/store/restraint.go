package store

import (
	"slices"

	"countersign/protocol"
)

// Restraint is everything that restricts a client, in one sealed record. It exists from enrolment
// on, so that its absence never grants anything.
type Restraint struct {
	Client  protocol.ClientID
	Highest int64       // highest spent counter, -1 when none
	Guard   Guard       // of the password
	Begun   []Challenge // with password attempts, of counters above Highest
	Windows []Window    // charges to limits by a release without sums
	Sums    []Sum       // sums of approvals
}

// Challenge counts the password attempts that were begun under one counter.
type Challenge struct {
	_        struct{} `cbor:",toarray"`
	Counter  uint32
	Attempts uint8
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
