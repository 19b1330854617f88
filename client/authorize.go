package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// Link carries messages to a device and back, one at a time, each of at most 2,048
// bytes. After an error it is of no more use, and whoever made it closes it, which
// ends a Send or Receive under way.
type Link interface {
	Send(msg []byte) error
	Receive() ([]byte, error)
}

// Request is what the user wants to have authorized.
type Request struct {
	Service protocol.Service
	Level   protocol.Level // the least; 0: 1
	Amount  *protocol.Amount
	Text    string
	Receipt bool // ask for the full receipt

	asked *protocol.Serial // with protocol.ServiceStatus
}

func (r Request) p1(client protocol.ClientID, serial protocol.Serial) message.P1 {
	p := message.P1{Client: client, Serial: serial, Service: r.Service, Level: max(r.Level, 1), Asked: r.asked}
	if r.Amount != nil || r.Text != "" {
		p.Proposal = &message.Proposal{Amount: r.Amount, Text: r.Text}
	}
	if r.Receipt {
		p.Capabilities = message.CapabilityFullReceipt
	}
	return p
}

// maxUpdates is how many MU one authorization takes.
const maxUpdates = 2

// Authorize runs one authorization over the link: applies, shows the challenge,
// countersigns what the user says, a refusal too, and gives the result. A denial is
// no error. An authorization that is [Client.Pending] becomes a receipt, of unknown
// outcome mostly: resume it first.
//
// With protocol.ServiceCoApproval it is the second approval of what another client has
// asked for at the same device; with protocol.ServiceDryRun nothing comes of it, and
// no receipt is kept.
//
// Errors before anything was signed: [ErrNotEnrolled], [DeviceError],
// [RefusedError], [ErrNotAuthentic], [FactorError], those of the Approver,
// PasswordSource and UserVerifier, or others that wrap a protocol.Code: CodeLink,
// CodeTimeout, CodeStaleKey, CodeExpired when the user took too long, and what
// message.P2.Acceptable has. After that [UnknownOutcomeError] or [RetryError], and
// with a known result only those of the disk.
func (c *Client) Authorize(ctx context.Context, link Link, req Request, approver Approver) (Receipt, error) {
	if c.state.Enrolment == nil {
		return Receipt{}, ErrNotEnrolled
	}
	if err := c.putAside(); err != nil {
		return Receipt{}, err
	}
	e, err := c.apply(ctx, link, req)
	if err == nil {
		err = c.countersign(ctx, &e, approver)
	}
	if err != nil {
		return Receipt{}, errors.Join(err, c.endSession())
	}
	return c.conclude(ctx, link, e)
}

// apply sends M1 until a challenge comes that may be shown.
func (c *Client) apply(ctx context.Context, link Link, req Request) (exchange, error) {
	for updates := 0; ; updates++ {
		e, err := c.begin(req)
		if err != nil {
			return e, err
		}
		answer, err := c.ask(ctx, link, e.M1)
		if err != nil {
			return e, err
		}
		kind, err := message.Kind(answer)
		switch {
		case err != nil:
			return e, fmt.Errorf("%w: %w", ErrNotAuthentic, err)
		case kind == message.KindM2:
			err = c.challenge(&e, req, answer)
			return e, err
		case kind != message.KindKeyUpdate:
			return e, unexpected(answer)
		case updates == maxUpdates:
			return e, fmt.Errorf("another key update after %d: %w", updates, protocol.CodeStaleKey)
		}
		if err := c.update(answer); err != nil {
			return e, err
		}
	}
}

// unexpected is for an answer that is no step forward: an ME, mostly.
func unexpected(answer []byte) error {
	me, err := message.ParseLinkError(answer)
	if err != nil {
		return fmt.Errorf("%w: message of kind %#x out of turn: %w", ErrNotAuthentic, answer[0]>>4, protocol.CodeFormat)
	}
	return &DeviceError{Code: me.Code, Retry: seconds(uint64(me.Retry))}
}

// update takes over the keys of an MU: CodeStaleKey if that leaves the same kem
// key, under which another M1 would only be answered with the same MU.
func (c *Client) update(mu []byte) error {
	pinned, now := c.trustNow()
	next, err := pinned.Update(mu, now)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAuthentic, err)
	}
	before, _ := pinned.Key(trust.UseKEM)
	after, ok := next.Key(trust.UseKEM)
	if !ok || bytes.Equal(before.Raw, after.Raw) {
		return fmt.Errorf("key update brings no key that may be used: %w", protocol.CodeStaleKey)
	}
	return c.save(func(s *state) { s.Trust = &next })
}

// challenge takes the first M2 and checks that it may be shown.
func (c *Client) challenge(e *exchange, req Request, m2 []byte) error {
	if err := e.receive(m2); err != nil {
		return err
	}
	if _, now := c.trustNow(); !e.kem.TakesM2At(now) {
		return fmt.Errorf("key of epoch %d is long over: %w", e.kem.Epoch, protocol.CodeStaleKey)
	}
	if e.p2.Code != 0 {
		refused := &RefusedError{Serial: e.p1.Serial, Service: req.Service, Code: e.p2.Code}
		if e.p2.Retry != nil {
			refused.Retry = seconds(*e.p2.Retry)
		}
		return refused
	}
	want := message.Expectation{
		Service: req.Service, Requested: e.p1.Level, Floor: c.state.Enrolment.floor, Amount: req.Amount, Text: req.Text,
	}
	if err := e.p2.Acceptable(want); err != nil {
		return fmt.Errorf("challenge: %w", err)
	}
	if first := e.p2.FirstService; first != nil && *first < protocol.FirstService {
		return fmt.Errorf("challenge: approves the reserved service %v: %w", *first, protocol.CodeFormat)
	}
	return nil
}

// ask sends a message and waits for one answer: CodeLink, CodeTimeout, or the
// error of ctx. On an error the exchange may go on until the link is closed.
func (c *Client) ask(ctx context.Context, link Link, msg []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("no answer in %v: %w", c.timeout, protocol.CodeTimeout))
	defer cancel()
	type reply struct {
		message []byte
		err     error
	}
	done := make(chan reply, 1)
	go func() {
		if err := link.Send(msg); err != nil {
			done <- reply{err: err}
			return
		}
		m, err := link.Receive()
		done <- reply{m, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-done:
		switch {
		case r.err != nil:
			return nil, fmt.Errorf("%v: %w", r.err, protocol.CodeLink)
		case len(r.message) > message.MaxFrame:
			return nil, fmt.Errorf("message of %d bytes: %w", len(r.message), protocol.CodeFormat)
		}
		return r.message, nil
	}
}
