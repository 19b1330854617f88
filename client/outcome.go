package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/protocol"
	"countersign/protocol/message"
)

// maxAttempts is how many M3 one challenge takes.
const maxAttempts = 3

// conclude sends M3 and takes its result; a wrong password is asked for again.
// Whatever goes wrong from here on leaves the session as it is.
func (c *Client) conclude(ctx context.Context, link Link, e exchange) (Receipt, error) {
	for {
		p4, err := c.result(ctx, link, e)
		switch {
		case err != nil:
			return c.unknown(e, err)
		case p4.Result == protocol.ResultRetry && (*p4.TriesLeft == 0 || e.attempt+1 == maxAttempts):
			p4.Result = protocol.ResultDenied // nothing may follow
			return c.finish(e, p4)
		case p4.Result != protocol.ResultRetry:
			return c.finish(e, p4)
		}
		if err := c.again(ctx, &e, *p4.TriesLeft); err != nil {
			return c.notAgain(e, err)
		}
	}
}

func (c *Client) result(ctx context.Context, link Link, e exchange) (message.P4, error) {
	answer, err := c.ask(ctx, link, e.M3)
	if err != nil {
		return message.P4{}, err
	}
	if me, notME := message.ParseLinkError(answer); notME == nil {
		return message.P4{}, &DeviceError{Code: me.Code, Retry: seconds(uint64(me.Retry))}
	}
	return e.result(answer)
}

// unknown is for an M3 that may have left and has no answer. What is without
// consequence is not worth remembering.
func (c *Client) unknown(e exchange, cause error) (Receipt, error) {
	if !e.counts() {
		return Receipt{}, errors.Join(cause, c.endSession())
	}
	r, bad := c.left(e)
	return r, errors.Join(&UnknownOutcomeError{Serial: e.p1.Serial, Cause: cause}, bad)
}

// again notes that the password was wrong and makes the next M3 of another.
func (c *Client) again(ctx context.Context, e *exchange, triesLeft uint64) error {
	e.TriesLeft = &triesLeft
	err := c.keep(*e)
	if err != nil || !e.proved {
		return errors.Join(err, c.retry(*e, nil))
	}
	ctx, cancel := c.untilTTL(ctx, *e)
	defer cancel()
	if ctx.Err() != nil {
		return c.retry(*e, context.Cause(ctx))
	}
	approval, err := c.prove(ctx, *e, PasswordAsk{Shown: c.shown(*e), TriesLeft: &triesLeft})
	if err != nil {
		return c.retry(*e, err)
	}
	if err := c.sign(ctx, e, approval); err != nil {
		return c.retry(*e, err)
	}
	return nil
}

func (c *Client) retry(e exchange, cause error) error {
	return &RetryError{Serial: e.p1.Serial, TriesLeft: *e.TriesLeft, Cause: cause}
}

func (c *Client) notAgain(e exchange, err error) (Receipt, error) {
	r, bad := c.left(e)
	if !e.counts() {
		bad = errors.Join(bad, c.endSession())
	}
	return r, errors.Join(err, bad)
}

// Resume goes on with the countersignature that has no final answer yet. It sends the
// same M3 again, which the appliance answers with the same result; where that was a
// wrong password it asks for another. A device that has lost the challenge is first
// given the same M1. Errors are [ErrNothingPending], and those of [Client.Authorize]
// from the countersignature on; once the ttl is over the outcome stays unknown, with
// CodeExpired.
func (c *Client) Resume(ctx context.Context, link Link) (Receipt, error) {
	s := c.state.Session
	if s == nil || s.M3 == nil {
		return Receipt{}, ErrNothingPending
	}
	e, err := s.open()
	switch {
	case err != nil:
		return Receipt{}, err
	case c.remaining(e) <= 0:
		return Receipt{}, c.tooLate(e)
	case e.TriesLeft != nil:
		if err := c.again(ctx, &e, *e.TriesLeft); err != nil {
			return c.notAgain(e, err)
		}
	}
	r, err := c.conclude(ctx, link, e)
	if !forgotten(err) || c.state.Session == nil {
		return r, err
	}
	if e, err = c.state.Session.open(); err == nil { // another password may have been tried
		err = c.remind(ctx, link, e)
	}
	if err != nil {
		return r, &UnknownOutcomeError{Serial: e.p1.Serial, Cause: err}
	}
	return c.conclude(ctx, link, e)
}

func (c *Client) tooLate(e exchange) error {
	var late error = &UnknownOutcomeError{Serial: e.p1.Serial, Cause: protocol.CodeExpired}
	if e.TriesLeft != nil {
		late = c.retry(e, protocol.CodeExpired)
	}
	return errors.Join(late, c.giveUp(e))
}

// forgotten tells whether the device says that it has no use for the M3, which it
// may have after the M1. It is not believed any further than that.
func forgotten(err error) bool {
	var me *DeviceError
	return errors.As(err, &me) && (me.Code == protocol.CodeFormat || me.Code == protocol.CodeExpired)
}

// remind sends M1 again. A device that has the challenge repeats it; another one
// is not answered, since the first has been.
func (c *Client) remind(ctx context.Context, link Link, e exchange) error {
	answer, err := c.ask(ctx, link, e.M1)
	if err != nil {
		return err
	}
	if bytes.Equal(answer, e.M2) {
		return nil
	}
	if kind, err := message.Kind(answer); err == nil && kind == message.KindM2 {
		return fmt.Errorf("the device has another challenge: %w", protocol.CodeExpired)
	}
	return unexpected(answer)
}

// Settle asks the appliance what became of an earlier authorization whose outcome is
// unknown or awaits a second approver, and gives its receipt, brought up to date. It
// is a request of its own with service 2, countersigned like any other. A serial that
// the appliance has not seen is denied for good, so the answer is final unless it is
// still pending; an authorization that is [Client.Pending] cannot be resumed then. A
// receipt whose outcome is final is given as it is.
//
// Errors are [ErrNoReceipt], [RefusedError] where the appliance does not tell, and
// those of [Client.Authorize].
func (c *Client) Settle(ctx context.Context, link Link, serial protocol.Serial, approver Approver) (Receipt, error) {
	if err := c.putAside(); err != nil {
		return Receipt{}, err
	}
	r, err := c.Receipt(serial)
	if err != nil || r.Final() {
		return r, err
	}
	told, err := c.Authorize(ctx, link, Request{Service: protocol.ServiceStatus, asked: &serial}, approver)
	if err != nil {
		return r, err
	}
	return told, nil
}

// finishStatus brings the receipt that was asked about up to date.
func (c *Client) finishStatus(e exchange, p4 message.P4) (Receipt, error) {
	r, err := c.told(*e.p1.Asked, p4)
	var refused *RefusedError
	if errors.As(err, &refused) {
		refused.Serial = e.p1.Serial
	}
	if err == nil {
		err = c.storeReceipt(r)
	}
	return r, errors.Join(err, c.endSession())
}

func (c *Client) told(asked protocol.Serial, p4 message.P4) (Receipt, error) {
	r, err := c.receipt(asked)
	switch {
	case err != nil:
		return r, err
	case p4.Result != protocol.ResultApproved:
		refused := &RefusedError{Service: protocol.ServiceStatus, Code: p4.Reason}
		if p4.Retry != nil {
			refused.Retry = seconds(*p4.Retry)
		}
		return r, refused
	case p4.Asked == nil:
		return r, fmt.Errorf("the answer does not tell the outcome: %w", protocol.CodeFormat)
	case r.Verdict == protocol.Refuse && p4.Asked.Result != protocol.ResultDenied:
		return r, fmt.Errorf("a refusal is told to be %v: %w", p4.Asked.Result, protocol.CodeFormat)
	}
	r.Known, r.Result, r.Reason = true, p4.Asked.Result, p4.Asked.Reason
	return r, nil
}

// Last is the serial of the newest countersignature.
func (c *Client) Last() (protocol.Serial, error) {
	list, err := c.Receipts()
	if r, ok := c.open(); ok {
		list = append(list, r)
	}
	if err != nil || len(list) == 0 {
		return protocol.Serial{}, errors.Join(err, ErrNoReceipt)
	}
	return slices.MaxFunc(list, func(a, b Receipt) int { return bytes.Compare(a.Serial[:], b.Serial[:]) }).Serial, nil
}
