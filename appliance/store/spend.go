package store

import (
	"bytes"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
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
	Decision receipt.Decision
	// Denial is what the evidence came to: 0 to approve, else the reason
	// that the client is told (18 where the user refused).
	Denial protocol.Code
	// PolicyVersion that Decision was made under.
	PolicyVersion uint64
	// Charges, one for each limit of the service; an approval takes them all.
	// Of several that name the same row the first is taken.
	Charges []Charge
	// Right: the password was checked and is right; the guard goes back to zero.
	Right bool
	// Pending: an approval that waits for a second approver; nil: none needed.
	// Limits are read now and charged at the final approval only.
	Pending *Pending
	// Approves: the pending decision that this one is the second approval of.
	Approves *Approves
	// Asks: the serial that service 2 asks about, of the same client. What asks
	// is dry.
	Asks *protocol.Serial
	// Dry: services 0 and 2. The serial is spent and recorded, and nothing is
	// charged. The result is 1, but Outcome.Decision is that of a denial, so that
	// nothing comes of it should it be signed.
	Dry      bool
	Evidence Evidence
	Salt     [16]byte // of the audit record
	Now      time.Time
}

// Pending is what an approval at level 4 waits for.
type Pending struct {
	Role    string    // that the second approver must have
	Expires time.Time // after it the approval is denied
}

func (p Pending) expired(now time.Time) bool { return now.After(p.Expires) }

// Approves names a pending decision. Decision of the Spend that carries it is the
// final one of the first client: its statement, service, level, pairwise id and
// transaction are those of the first, U and SecondStatement those of the second.
// Charges are the first client's. A Decision of another statement, transaction or
// device than the one that waits is refused (14).
type Approves struct {
	Client protocol.ClientID
	Serial protocol.Serial
}

// Evidence is what the audit record keeps of the countersignature.
type Evidence struct {
	Statement message.Statement
	Approval  message.Approval
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
	Currency    string        // of the amounts; "" where the service has none
	AmountLimit uint64        // most minor units in a window
	CountLimit  uint64        // most approvals in a window
}

func (c Charge) exceeds(u Window) bool {
	overAmount := c.AmountLimit != 0 && (u.Amount > c.AmountLimit || c.Amount > c.AmountLimit-u.Amount)
	overCount := c.CountLimit != 0 && u.Count >= c.CountLimit
	return overAmount || overCount
}

func (s Spend) exceeds(used []Window) bool {
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
	Used          []Window // of each charge, in the same order
	// Spent is the decision stored for the serial's counter, if there is one.
	Spent *Spent
	// Begun are the password attempts under the serial's counter, by number.
	Begun []Begun
	// First is the decision that Spend.Approves names, and FirstClient its client;
	// Used is the first client's then. Nil where there is none.
	First       *Spent
	FirstClient *Client
	// Asked is the decision stored for the counter of Spend.Asks, if any.
	Asked *Spent
}

// Spent is a stored decision with the countersignature that it answered.
type Spent struct {
	AnswerKey
	Outcome Outcome
	Pending *Pending // of a decision that waited for a second approver
	Final   *Final   // what became of it; nil while it waits
}

// Final is the end of a pending decision. The first client's M3 is answered as
// pending ever after; service 2 tells it the end.
type Final struct {
	Result protocol.Result
	Reason protocol.Code
	At     time.Time
}

// Outcome is what was decided, and what the client is told.
type Outcome struct {
	Result   protocol.Result
	Reason   protocol.Code // P4.2
	Decision receipt.Decision
	At       time.Time
	Replayed bool // it was decided by an earlier, identical countersignature
	// Asked answers Spend.Asks.
	Asked *message.AskedResult
	// TriesLeft is with [protocol.ResultRetry] only: the answer to a wrong
	// password, which has no decision.
	TriesLeft uint64
}

// Stamp is a time as every driver keeps it: UTC, in whole microseconds.
func Stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// SameRequest tells whether an invitation was used by this very request.
func (i Invitation) SameRequest(request [32]byte) bool {
	return !i.UsedAt.IsZero() && bytes.Equal(i.Request[:], request[:])
}
