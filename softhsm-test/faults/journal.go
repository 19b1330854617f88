package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/rig/tamper"
)

// exchange is one request and what came of it.
type exchange struct {
	begun      time.Time
	took       time.Duration
	overLink   bool
	code       protocol.Code // 0: a message of the protocol came back
	retryAfter bool          // Retry-After came with it, or a time in ME
	err        error         // of the connection
}

func (e exchange) failed() bool { return e.code != 0 || e.err != nil }

// foreseen: answered, or refused in the words for an HSM that is away or busy.
func (e exchange) foreseen() bool {
	return e.err == nil && (e.code == 0 || e.code == protocol.CodeBusy || e.code == protocol.CodeHSM)
}

func (e exchange) String() string {
	return fmt.Sprintf("code %d after %v%s", uint8(e.code), e.took.Round(time.Millisecond), because(e.err))
}

// approval is an authorization that was approved, as its phone knows it.
type approval struct {
	at          time.Time
	serial      protocol.Serial
	transaction protocol.TransactionID
	acts        bool // a relay acts on it
}

// journal is what all phones and devices of a scene have seen. It is safe for
// concurrent use.
type journal struct {
	mu        sync.Mutex // guards what follows
	spoil     bool       // break the next decision on its way to the harness
	exchanges []exchange
	approved  []approval
	denied    []protocol.Code
	bad       []error // signatures that were released and do not verify, answers that are none
	verified  int
}

func (j *journal) add(e exchange) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.exchanges = append(j.exchanges, e)
}

// check verifies a decision or receipt that was released.
func (j *journal) check(verify func([]byte) (receipt.Decision, error), signed []byte) (receipt.Decision, bool) {
	j.mu.Lock()
	if j.spoil && len(signed) != 0 {
		signed, j.spoil = tamper.Flip(signed, 8*len(signed)-1), false
	}
	j.mu.Unlock()
	d, err := verify(signed) // not under the lock: all phones verify
	j.mu.Lock()
	defer j.mu.Unlock()
	j.verified++
	if err != nil {
		j.bad = append(j.bad, fmt.Errorf("released: %w", err))
	}
	return d, err == nil
}

func (j *journal) blame(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.bad = append(j.bad, err)
}

func (j *journal) approve(a approval) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.approved = append(j.approved, a)
}

func (j *journal) deny(c protocol.Code) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.denied = append(j.denied, c)
}

func (j *journal) approvals() []approval {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.approved)
}

func (j *journal) denials() []protocol.Code {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.denied)
}

// since are the exchanges that began in a time.
func (j *journal) since(from, to time.Time) (some []exchange) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.exchanges {
		if !e.begun.Before(from) && e.begun.Before(to) {
			some = append(some, e)
		}
	}
	return some
}

// touched are the exchanges that were under way at a time, or began after it.
func (j *journal) touched(at time.Time) []exchange {
	return filter(j.since(time.Time{}, time.Now()), func(e exchange) bool { return !e.begun.Add(e.took).Before(at) })
}

func (j *journal) last() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.exchanges) == 0 {
		return errors.New("nothing was sent")
	}
	return fmt.Errorf("last request: %v%s", j.exchanges[len(j.exchanges)-1], first(j.bad))
}

// rate is how many were approved per second in a time.
func (j *journal) rate(from, to time.Time) float64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, a := range j.approved {
		if !a.at.Before(from) && a.at.Before(to) {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// quantile of the times of some exchanges, 0 to 1; 0 for none.
func quantile(some []exchange, q float64) time.Duration {
	if len(some) == 0 {
		return 0
	}
	var all []time.Duration
	for _, e := range some {
		all = append(all, e.took)
	}
	slices.Sort(all)
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

func filter(some []exchange, keep func(exchange) bool) (kept []exchange) {
	for _, e := range some {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

// codes counts exchanges by what came back, for a line of the report.
func codes(some []exchange) string {
	count := map[string]int{}
	for _, e := range some {
		what := "answered"
		switch {
		case e.err != nil:
			what = "cut off"
		case e.code != 0:
			what = fmt.Sprintf("code %d", uint8(e.code))
		}
		count[what]++
	}
	return fmt.Sprint(count)
}
