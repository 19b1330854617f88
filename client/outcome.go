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

// maxAttempts is the maximum number of M3s for one challenge.
const maxAttempts = 3

// conclude sends M3 and processes its result. After a wrong password it asks for another. Errors
// leave the session as it is.
func (c *Client) conclude(ctx context.Context, link Link, e exchange) (Receipt, error) {
	for {
		p4, err := c.result(ctx, link, e)
		switch {
		case err != nil:
			return c.unknown(e, err)
		case p4.Result == protocol.ResultRetry && (*p4.TriesLeft == 0 || e.attempt+1 == maxAttempts):
			p4.Result = protocol.ResultDenied // no attempt is left
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

// unknown handles an M3 that may have left and has no answer. Requests without effect leave no
// trace.
func (c *Client) unknown(e exchange, cause error) (Receipt, error) {
	if !e.counts() {
		return Receipt{}, errors.Join(cause, c.endSession())
	}
	r, bad := c.left(e)
	return r, errors.Join(&UnknownOutcomeError{Serial: e.p1.Serial, Cause: cause}, bad)
}

// again records that the password was wrong and makes the next M3 with another.
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

// Resume continues the countersignature that has no final answer. It sends the same M3 again, and
// the appliance repeats its result; after a wrong password it asks for another. It first sends the
// same M1 to a device that has lost the challenge. Errors are [ErrNothingPending] and the errors of
// [Client.Authorize] after a signature. After the challenge expires the outcome stays unknown, with
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
	if e, err = c.state.Session.open(); err == nil { // conclude may have tried another password
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

// forgotten reports whether the device cannot use the M3, which the M1 may repair. The client trusts
// an ME for nothing else.
func forgotten(err error) bool {
	var me *DeviceError
	return errors.As(err, &me) && (me.Code == protocol.CodeFormat || me.Code == protocol.CodeExpired)
}

// remind sends M1 again. A device that still has the challenge repeats it. The client does not
// answer a different challenge, because it has answered the first.
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

// Settle asks the appliance for the outcome of an earlier authorization that is unknown or awaits a
// second approver, and whether the device performed the act of an approval. It returns the updated
// receipt. It sends a countersigned request for service 2. The appliance denies a serial that it has
// not seen permanently, so the answer is final unless it is pending, and a [Client.Pending]
// authorization can no longer be resumed. Settle returns a settled receipt unchanged
// ([Receipt.Settled]).
//
// Errors are [ErrNoReceipt], [ErrContradicted], [RefusedError] if the appliance does not answer the question, and the
// errors of [Client.Authorize].
func (c *Client) Settle(ctx context.Context, link Link, serial protocol.Serial, approver Approver) (Receipt, error) {
	if err := c.putAside(); err != nil {
		return Receipt{}, err
	}
	r, err := c.Receipt(serial)
	if err != nil || r.Settled() {
		return r, err
	}
	told, err := c.Authorize(ctx, link, Request{Service: protocol.ServiceStatus, asked: &serial}, approver)
	if err != nil {
		return r, err
	}
	return told, nil
}

// finishStatus updates the receipt in question.
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
		return r, fmt.Errorf("the answer has no outcome: %w", protocol.CodeFormat)
	case r.Verdict == protocol.Refuse && p4.Asked.Result != protocol.ResultDenied:
		return r, fmt.Errorf("the outcome of a refusal is reported as %v: %w: %w",
			p4.Asked.Result, ErrContradicted, protocol.CodeFormat)
	case r.Approved() && p4.Asked.Result != protocol.ResultApproved:
		return r, fmt.Errorf("the outcome of an approval is reported as %v: %w", p4.Asked.Result, ErrContradicted)
	}
	r.Performed = p4.Performed
	r.Known, r.Result, r.Reason = true, p4.Asked.Result, p4.Asked.Reason
	return r, nil
}

// Last returns the serial of the newest countersignature.
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
