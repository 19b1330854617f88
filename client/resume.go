package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"countersign/protocol"
)

// Resume finds out what became of the countersignature whose outcome is unknown: it
// sends the same M3 again, which the appliance answers with the same result. A
// device that has lost the challenge is first given the same M1. Errors are
// [ErrNothingPending], and those of [Client.Authorize] from the countersignature on;
// once the ttl is over the outcome stays unknown, with CodeExpired.
func (c *Client) Resume(ctx context.Context, link Link) (Receipt, error) {
	s := c.state.Session
	if s == nil || s.M3 == nil {
		return Receipt{}, ErrNothingPending
	}
	e, err := s.open()
	if err != nil {
		return Receipt{}, err
	}
	if c.remaining(e) <= 0 {
		unknown := &UnknownOutcomeError{Serial: e.p1.Serial, Cause: protocol.CodeExpired}
		return Receipt{}, errors.Join(unknown, c.giveUp(e))
	}
	r, err := c.settle(ctx, link, e)
	if !forgotten(err) {
		return r, err
	}
	if err := c.remind(ctx, link, e); err != nil {
		return r, &UnknownOutcomeError{Serial: e.p1.Serial, Cause: err}
	}
	return c.settle(ctx, link, e)
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
	if kind, err := protocol.Kind(answer); err == nil && kind == protocol.KindM2 {
		return fmt.Errorf("the device has another challenge: %w", protocol.CodeExpired)
	}
	return unexpected(answer)
}
