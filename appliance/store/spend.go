package store

import (
	"bytes"
	"time"

	"countersign/protocol"
)

// AnswerKey names one countersignature: the same M3 under the same attempt of the
// same serial is answered the same way for ever.
type AnswerKey struct {
	Client  protocol.ClientID
	Serial  protocol.Serial
	Attempt uint8
	M3      [32]byte // SHA-256 of the message
}

// Spend is a countersignature whose evidence has been examined: what the store
// must know to spend the serial and to write down the decision.
type Spend struct {
	AnswerKey
	// Decision as it will be if nothing in the transaction stands against it.
	Decision protocol.Decision
	// Denial is what the evidence came to: 0 to approve, else the reason
	// that the client is told (18 where the user refused).
	Denial protocol.Code
	// PolicyVersion that Decision was made under.
	PolicyVersion uint64
	// Charges, one for each limit of the service; an approval takes them all.
	// Of several that name the same row the first is taken.
	Charges  []Charge
	Evidence Evidence
	Salt     [16]byte // of the audit record
	Now      time.Time
}

// Evidence is what the audit record keeps of the countersignature.
type Evidence struct {
	Statement protocol.Statement
	Approval  protocol.Approval
	Signature [protocol.SignatureSize]byte
	Reference string // the device's own, of its order
}

// Charge is what an approval takes from one of the client's limits on a service.
// A limit of zero is no limit. Client, service, period and window name the row
// that is charged.
type Charge struct {
	Service     protocol.Service
	Period      time.Duration // length of the window, whole seconds
	Window      time.Time     // its start, a multiple of Period since the Unix epoch
	Amount      uint64        // minor units that this approval takes
	AmountLimit uint64        // most minor units in a window
	CountLimit  uint64        // most approvals in a window
}

// Used is what a window has been charged so far.
type Used struct{ Amount, Count uint64 }

func (c Charge) exceeds(u Used) bool {
	overAmount := c.AmountLimit != 0 && (u.Amount > c.AmountLimit || c.Amount > c.AmountLimit-u.Amount)
	overCount := c.CountLimit != 0 && u.Count >= c.CountLimit
	return overAmount || overCount
}

func (s Spend) exceeds(used []Used) bool {
	for i, c := range s.Charges {
		if i >= len(used) || c.exceeds(used[i]) {
			return true
		}
	}
	return false
}

// View is what the transaction has read, with the client's row locked.
type View struct {
	Client        Client
	Device        Device
	PolicyVersion uint64
	Used          []Used // of each charge, in the same order
	// Spent is the decision stored for the serial's counter, if there is one.
	Spent *Spent
}

// Spent is a stored decision with the countersignature that it answered.
type Spent struct {
	AnswerKey
	Outcome Outcome
}

// Outcome is what was decided, and what the client is told.
type Outcome struct {
	Result   protocol.Result
	Reason   protocol.Code // P4.2
	Decision protocol.Decision
	At       time.Time
	Replayed bool // it was decided by an earlier, identical countersignature
}

// Conclusion is what a driver has to store.
type Conclusion struct {
	Outcome Outcome
	// Spend: raise the client's highest counter and store the decision.
	Spend bool
	// Charge: add the charges to their windows.
	Charge bool
	// Record to append; nil for a repeat.
	Record *Record
}

// Conclude decides within the transaction. It is the same for every driver and
// reads nothing but its arguments. Whatever stands against the approval makes it
// a denial; a spent counter changes nothing but the audit (PROTOCOL.md §4).
func (s Spend) Conclude(v View) Conclusion {
	if v.Spent != nil && v.Spent.AnswerKey == s.AnswerKey {
		again := v.Spent.Outcome
		again.Replayed = true
		return Conclusion{Outcome: again}
	}
	if code := s.conflict(v); code != 0 {
		out := s.outcome(code)
		return Conclusion{Outcome: out, Record: s.record(out, KindRefused)}
	}
	out := s.outcome(s.denial(v))
	return Conclusion{
		Outcome: out,
		Spend:   true,
		Charge:  out.Result == protocol.ResultApproved,
		Record:  s.record(out, KindDecision),
	}
}

// conflict tells whether the serial's counter was spent before.
func (s Spend) conflict(v View) protocol.Code {
	switch {
	case v.Spent != nil && v.Spent.Serial != s.Serial:
		return protocol.CodeClone
	case v.Spent != nil, int64(s.Serial.Counter()) <= v.Client.Highest:
		return protocol.CodeSerial
	default:
		return 0
	}
}

// denial finds the first reason against the approval.
func (s Spend) denial(v View) protocol.Code {
	switch {
	case v.Client.Status == Suspended:
		return protocol.CodeSuspended
	case v.Client.Status != Active, v.Device.Status != Active:
		return protocol.CodeRefused
	case s.Denial != 0:
		return s.Denial
	case v.PolicyVersion != s.PolicyVersion:
		return protocol.CodePolicy
	case s.exceeds(v.Used):
		return protocol.CodeLimit
	default:
		return 0
	}
}

// Stamp is a time as every driver keeps it: UTC, in whole microseconds.
func Stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// outcome turns a reason into result and decision; the device learns of a denial
// no more than that it is one (PROTOCOL.md §3.1, field 12).
func (s Spend) outcome(reason protocol.Code) Outcome {
	d := s.Decision
	if reason == 0 {
		d.Result, d.Reason = protocol.ResultApproved, 0
	} else {
		d.Result, d.Reason = protocol.ResultDenied, protocol.CodeRefused
	}
	return Outcome{Result: d.Result, Reason: reason, Decision: d, At: Stamp(s.Now)}
}

// SameRequest tells whether an invitation was used by this very request.
func (i Invitation) SameRequest(request [32]byte) bool {
	return !i.UsedAt.IsZero() && bytes.Equal(i.Request[:], request[:])
}
