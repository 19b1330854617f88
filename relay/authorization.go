package relay

import (
	"context"
	"crypto/sha256"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
)

// authorization is one order on its way to an act. Relay.step moves it from state to state.
type authorization struct {
	progress // guarded by registry.mu; only step changes it
	order    deviceapi.Order
	isExact  bool        // an order without an amount allows none; false: the decision sets the amount
	owner    *challenge  // of the phone that took the order up; guarded by registry.mu
	results  chan result // to the program that placed the order; nil: it comes from the configuration
}

// state is the state of an authorization:
//
//	offered → applied ⇄ countersigning → acting → settled
//	                          ↓            ↑
//	                       waiting ────────┘
//
// A phone that needs no order returns it: it is offered again. A denial, a decision that does
// not verify, or the end of its time settles an authorization in any state before acting.
type state uint8

const (
	offered        state = iota // open to the next phone
	applied                     // a phone has taken it up and has a challenge, or is about to get one
	countersigning              // the appliance has that phone's M3
	waiting                     // a first countersignature is approved; a second approver must follow
	acting                      // approved and journalled; the hook runs
	settled                     // the result is known
)

// progress is the part of an authorization that [progress.next] reads and changes.
type progress struct {
	state    state
	isOnce   bool     // a program placed the order: the device acts on it at most once
	isSpent  bool     // with isOnce: acted on, denied by a second approver, or expired
	isGone   bool     // the program has disconnected
	isOver   bool     // its time has ended; it settles with the last answer, which may be an approval
	isClosed bool     // it waits, but a newer one is offered to second approvers instead
	calls    int      // M3s at the appliance
	pending  *pending // the approval that waits; nil: none yet
}

// eventKind is something that happens to an authorization.
type eventKind uint8

const (
	taken          eventKind = iota // an M1 takes it up, or joins it as the second approver's
	returned                        // the phone needs no order: it got no challenge, or asked for a status or dry run
	challengeEnded                  // the phone's challenge has expired
	countersigned                   // an M3 has arrived
	decided                         // the appliance's answer to M3 has a signed decision
	concluded                       // that answer ends the order without an act
	denied                          // verified: the second approver's decision is a denial
	pended                          // verified: the decision waits for a second approver
	repeated                        // verified: the same decision as before that waits for a second approver
	approved                        // verified: the decision is an approval
	begun                           // the journal has stored the transaction
	known                           // the journal already has the transaction
	unjournalled                    // the journal cannot be written
	acted                           // the hook has ended
	answered                        // the exchange that countersigned began is over
	waitEnded                       // no second approver came in time
	superseded                      // a newer approval of the same standing order waits
	withdrawn                       // no phone took the order up in time
	abandoned                       // the program that placed the order has disconnected
	eventKinds                      // their number
)

// event is one occurrence with its details.
type event struct {
	kind    eventKind
	isOwner bool     // it concerns the challenge of the phone that took the order up
	result  result   // of concluded, denied, pended, approved and acted, and what follows them
	pending *pending // of pended, repeated and waitEnded
}

// effectKind is something that the relay does because of an event.
type effectKind uint8

const (
	apply   effectKind = iota // forward M1 to the appliance
	forward                   // forward M3 to the appliance
	verify                    // verify the decision
	begin                     // journal that the act begins
	act                       // show the approval and run the hook
	skip                      // log and count that the transaction was acted on before
	decline                   // log and count that the order is spent
	finish                    // journal the outcome and have it reported to the appliance
	await                     // offer the approval to second approvers, for a limited time
	relist                    // offer it again, if no other one is offered
	inform                    // send the result to the program that placed the order
	record                    // write the result to the status file
	reply                     // answer the phone's frame
	stop                      // stop the relay
)

// effect is one thing to do.
type effect struct {
	kind   effectKind
	result result
}

// Results of an order, in addition to the results of a decision: "approved", "denied", and
// "pending", which is not final.
const (
	resultExpired = "expired" // no phone took it up, countersigned or approved in time
	resultRefused = "refused" // this device may not act on the decision
	resultFailed  = "failed"  // approved, but not acted on; the log says why
)

// result is the result of an order.
type result struct {
	Result    string
	Code      protocol.Code
	Decision  *receipt.Decision // verified; nil: there is none
	Performed bool
}

// logFields returns the decision's fields for the log, followed by more.
func (r result) logFields(more ...any) []any {
	return append([]any{"transaction", r.Decision.Transaction.String(), "service", uint64(r.Decision.Service)}, more...)
}

func (r result) isFinal() bool { return r.Result != protocol.ResultPending.String() }

// challenge is one M1 with the appliance's answer to it.
type challenge struct {
	m1            [sha256.Size]byte
	nonce         protocol.Nonce
	root          protocol.RootID // pinned when M1 was applied; the device may have followed to another since
	authorization *authorization  // whose order M1 was applied with
	second        *pending        // approval that was applied for too, in case the phone is a second approver's; nil: none
	lack          error           // why there is no order; nil: there is one
	ready         chan struct{}   // closed once the following fields are set

	err     error
	answer  []byte // M2 or MU
	handle  []byte // nil: there is nothing to countersign
	chal    protocol.Challenge
	expires time.Time

	sent  map[[sha256.Size]byte]time.Time // when each M3 was first sent, by its hash; guarded by registry.mu
	first time.Time                       // when the first of them was; guarded by registry.mu
	waits *pending                        // that an M3 led to; guarded by registry.mu
}

// pending is an approval that waits for a second approver, PROTOCOL.md §4. It is immutable.
type pending struct {
	authorization *authorization
	handle        []byte // names it to the appliance; nil: no second approver can be asked
	chal          protocol.Challenge
	root          protocol.RootID  // pinned when its M1 was applied
	first         receipt.Decision // verified, of result 3
}

// exchange is one frame under way.
type exchange struct {
	ctx       context.Context
	challenge *challenge
	link      deviceapi.LinkClass           // of M1
	frame     []byte                        // M1 or M3
	sent      time.Time                     // when M3 was first sent
	answer    deviceapi.CountersignResponse // to M3
	reply     []byte                        // for the phone
	err       error                         // for the phone, in place of reply
	fatal     error                         // for the relay
}
