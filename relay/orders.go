package relay

import (
	"context"
	"errors"

	"countersign/protocol"
)

// Orders says what phones are asked for. Exactly one of the three is given.
type Orders struct {
	Accept []protocol.Service // services without an order: service and amount come from the decision
	Static *protocol.Order    // the same order for each phone
	Socket string             // path of the Unix socket on which a local program hands in orders
}

// The results of an order, beside those of a decision ("approved", "denied",
// "pending").
const (
	ResultExpired = "expired" // nobody took it up, or nobody countersigned in time
	ResultRefused = "refused" // the decision was not one that this device may act on
	ResultFailed  = "failed"  // approved, but not acted on: the journal cannot be written
)

// Settlement is what became of an order.
type Settlement struct {
	Result    string
	Code      protocol.Code
	Decision  *protocol.Decision // verified; nil: there is none
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

// ticket is an order given to one session.
type ticket struct {
	order   protocol.Order
	isExact bool             // an order, not a list of what is accepted
	settle  func(Settlement) // the first call counts; never nil
	putBack func()           // the session came to nothing; never nil
}

// source gives orders to sessions.
type source interface {
	// take gives the order for the next M1; an error with a code if there is none.
	take() (ticket, error)
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
		return standing{ticket: standingTicket(protocol.Order{Services: o.Accept}, false)}, nil
	}
	return nil, errors.New("relay: no orders")
}

func standingTicket(o protocol.Order, isExact bool) ticket {
	return ticket{order: o, isExact: isExact, settle: func(Settlement) {}, putBack: func() {}}
}

// standing gives the same order to everybody.
type standing struct{ ticket ticket }

func (s standing) take() (ticket, error)   { return s.ticket, nil }
func (s standing) run(ctx context.Context) { <-ctx.Done() }
func (s standing) close() error            { return nil }
