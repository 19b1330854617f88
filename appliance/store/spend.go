package store

import (
	"bytes"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// AnswerKey names one countersignature: the same M3 under the same attempt of the same serial
// always gets the same answer.
type AnswerKey struct {
	Client  protocol.ClientID
	Serial  protocol.Serial
	Attempt uint8
	M3      [32]byte // SHA-256 of the message
}

// Spend is a countersignature with examined evidence: everything the store needs to spend the
// serial and record the decision.
type Spend struct {
	AnswerKey
	// Decision is the decision if nothing in the transaction stands against it.
	Decision receipt.Decision
	// Denial is the result of the evidence: 0 to approve, else the reason for the client (18 if the
	// user refused).
	Denial protocol.Code
	// PolicyVersion is the version that Decision was made under.
	PolicyVersion uint64
	// Charges has one entry for each limit and each cumulated window of the service; an approval
	// takes them all. Of several for one window the first counts.
	Charges []Charge
	// Right reports that the password was checked and is right: the guard is reset.
	Right bool
	// Pending is set for an approval that waits for a second approver. Its limits are checked now,
	// and charged at the final approval.
	Pending *Pending
	// Approves is the pending decision that this countersignature approves second.
	Approves *Approves
	// Asks is the serial of the same client that service 2 asks about. Such a Spend is dry.
	Asks *protocol.Serial
	// Dry is set for services 0 and 2. The serial is spent and recorded, but nothing is charged.
	// The result is 1, but Outcome.Decision is a denial, so that signing it would have no effect.
	Dry      bool
	Evidence Evidence
	Salt     [16]byte // of the audit record
	Now      time.Time
}

// Pending says what an approval at level 4 waits for.
type Pending struct {
	Role    string    // of the second approver; never [RoleUV]
	Expires time.Time // the approval is denied afterwards
}

func (p Pending) expired(now time.Time) bool { return now.After(p.Expires) }

// Approves names a pending decision. The Decision of the Spend that carries it is the final
// decision of the first client: statement, service, level, pairwise id and transaction come from
// the first countersignature, U and SecondStatement from the second. Charges belong to the first
// client. A Decision of another statement, transaction or device than the waiting one is refused
// (14).
type Approves struct {
	Client protocol.ClientID
	Serial protocol.Serial
}

// Evidence is the part of the countersignature that the audit record keeps.
type Evidence struct {
	Statement message.Statement
	Approval  message.Approval
	Signature [protocol.SignatureSize]byte
	Reference string // the device's own, of its order
}

// Charge adds one approval and its amount to a sliding window of a client on a service. Zero means no
// limit and no bound. Client, service, period and currency name the sum that is charged.
type Charge struct {
	Service     protocol.Service
	Period      time.Duration // length of the window, whole seconds
	At          time.Time     // of the approval; of a stored charge: start of its bucket
	Amount      uint64        // minor units that this approval takes
	Currency    string        // of the amounts; "" where the service has none
	AmountLimit uint64        // most minor units in the window (13)
	CountLimit  uint64        // most approvals in the window (13)
	// Below is the bound of the signed level: the amounts in the window stay below it, or the
	// approval needs a higher level (12).
	Below uint64
}

// exceeds reports whether the charge goes beyond a limit.
func (c Charge) exceeds(u Used) bool {
	overAmount := c.AmountLimit != 0 && (u.Amount > c.AmountLimit || c.Amount > c.AmountLimit-u.Amount)
	overCount := c.CountLimit != 0 && u.Count >= c.CountLimit
	return overAmount || overCount
}

// outgrows reports whether the amounts need a higher level than the signed one.
func (c Charge) outgrows(u Used) bool {
	return c.Below != 0 && sum(u.Amount, c.Amount) >= c.Below
}

// anyCharge reports whether holds is true for a charge and the use of its window. It also returns true
// if a window was not read.
func (s Spend) anyCharge(used []Used, holds func(Charge, Used) bool) bool {
	for i, c := range s.Charges {
		if i >= len(used) || holds(c, used[i]) {
			return true
		}
	}
	return false
}

// View is the content of the store that Conclude decides on, read in the transaction.
type View struct {
	Client        Client
	Device        Device
	PolicyVersion uint64
	Used          []Used // of each charge, in the same order
	// Spent is the decision stored for the counter of the serial, if there is one.
	Spent *Spent
	// Begun lists the password attempts under the counter of the serial, by number.
	Begun []Begun
	// First is the decision that Spend.Approves names, and FirstClient its client, whose limits
	// Used is about then. Both are nil if there is no such decision.
	First       *Spent
	FirstClient *Client
	// Asked is the decision stored for the counter of Spend.Asks, if any.
	Asked *Spent
}

// Spent is a stored decision with the countersignature that it answered.
type Spent struct {
	AnswerKey
	Outcome Outcome
	Pending *Pending // nil: it needed no second approver
	Final   *Final   // its end; nil while it waits
}

// Final is the end of a pending decision. A repeat of the M3 of the first client is still answered
// as pending; service 2 reports the end.
type Final struct {
	Result protocol.Result
	Reason protocol.Code
	At     time.Time
}

// Outcome is the decision, with the answer to the client.
type Outcome struct {
	Result   protocol.Result
	Reason   protocol.Code // P4.2
	Decision receipt.Decision
	At       time.Time
	Replayed bool // an earlier, identical countersignature decided it
	Unspent  bool // nothing was stored: the caller records the refusal, see [Spend.Refused]
	// Asked answers Spend.Asks.
	Asked *message.AskedResult
	// TriesLeft is set with [protocol.ResultRetry] only: the answer to a wrong password, which has
	// no decision.
	TriesLeft uint64
}

// Stamp returns a time as every driver stores it: in UTC and whole microseconds.
func Stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// SameRequest reports whether this very request used the invitation.
func (i Invitation) SameRequest(request [32]byte) bool {
	return !i.UsedAt.IsZero() && bytes.Equal(i.Request[:], request[:])
}
