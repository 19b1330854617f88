package relay

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
)

// Orders says what phones are asked for. Exactly one of the three is given.
type Orders struct {
	Accept []protocol.Service // services without an order: service and amount come from the decision
	Static *deviceapi.Order   // the same order for each phone
	Socket string             // path of the Unix socket on which a local program hands in orders
}

// The results of an order, beside those of a decision ("approved", "denied", and
// "pending", which another one follows).
const (
	ResultExpired = "expired" // nobody took it up, or nobody countersigned or approved in time
	ResultRefused = "refused" // the decision was not one that this device may act on
	ResultFailed  = "failed"  // approved, but not acted on: see the log
)

// Settlement is what became of an order.
type Settlement struct {
	Result    string
	Code      protocol.Code
	Decision  *receipt.Decision // verified; nil: there is none
	Performed bool
}

// last is what the status file says of it.
func (o Settlement) last() *Last {
	l := &Last{Result: o.Result, Code: o.Code}
	if o.Decision != nil {
		l.Transaction, l.Service = o.Decision.Transaction.String(), o.Decision.Service
	}
	if o.Decision != nil && o.Decision.Result == protocol.ResultApproved && !o.Performed {
		l.Result = ResultFailed
	}
	return l
}

// isFinal says whether nothing follows a settlement.
func (o Settlement) isFinal() bool { return o.Result != protocol.ResultPending.String() }

// ticket is an order given to a session, and to those of second approvers.
type ticket struct {
	order   deviceapi.Order
	isExact bool             // an order, not a list of what is accepted
	isOnce  bool             // acted on at most once
	settle  func(Settlement) // the first final one counts; never nil
	putBack func()           // the session came to nothing; never nil
	isGone  func() bool      // nobody waits for it any more; never nil
	claimed atomic.Bool      // it was acted on, or its time is over
}

// claim is true for whoever may act on the order or end it: of one for a single
// act that is the first only.
func (t *ticket) claim() bool { return !t.isOnce || t.claimed.CompareAndSwap(false, true) }

// isOpen says whether the order can be given to a session.
func (t *ticket) isOpen() bool { return !t.claimed.Load() && !t.isGone() }

// wired is the order as the appliance gets it. A status and a dry run are always
// possible; nobody acts on them.
func wired(o deviceapi.Order, hasPending bool) deviceapi.Order {
	o.Services = append(slices.Clone(o.Services), protocol.ServiceDryRun, protocol.ServiceStatus)
	if hasPending {
		o.Services = append(o.Services, protocol.ServiceCoApproval)
	}
	return o
}

// source gives orders to sessions.
type source interface {
	// take gives the order for the next M1; an error with a code if there is none.
	take() (*ticket, error)
	// run serves whoever hands in orders, until ctx is over.
	run(ctx context.Context)
	close() error
}

func newSource(c Config) (source, error) {
	switch o := c.Orders; {
	case o.Socket != "":
		return newDesk(c)
	case o.Static != nil:
		return standing{ticket: standingTicket(*o.Static, true)}, nil
	case len(o.Accept) != 0:
		return standing{ticket: standingTicket(deviceapi.Order{Services: o.Accept}, false)}, nil
	}
	return nil, errors.New("relay: no orders")
}

func standingTicket(o deviceapi.Order, isExact bool) *ticket {
	return &ticket{order: o, isExact: isExact, settle: func(Settlement) {}, putBack: func() {}, isGone: func() bool { return false }}
}

// standing gives the same order to everybody.
type standing struct{ ticket *ticket }

func (s standing) take() (*ticket, error)  { return s.ticket, nil }
func (s standing) run(ctx context.Context) { <-ctx.Done() }
func (s standing) close() error            { return nil }
