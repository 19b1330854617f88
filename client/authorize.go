package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"countersign/internal/secret"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// Link carries messages to a device and back, one at a time, each of at most 2,048 bytes. It is
// unusable after an error. Its owner closes it, which ends a pending Send or Receive.
type Link interface {
	Send(msg []byte) error
	Receive() ([]byte, error)
}

// Request is the authorization that the user requests.
type Request struct {
	Service protocol.Service
	Level   protocol.Level // the lowest acceptable; 0 means 1
	Amount  *protocol.Amount
	Text    string
	Receipt bool // request the full receipt

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

// maxUpdates is the maximum number of MUs in one authorization.
const maxUpdates = 2

// Authorize runs one authorization over the link. It sends the request, shows the challenge,
// countersigns the user's answer, also a refusal, and returns the result. A denial is not an error.
// A [Client.Pending] authorization becomes a receipt, usually with an unknown outcome: call Resume
// first.
//
// With protocol.ServiceCoApproval it is the second approval of another client's request at the same
// device. With protocol.ServiceDryRun it has no effect and leaves no receipt.
//
// Errors before a signature: [ErrNotEnrolled], [DeviceError], [RefusedError], [ErrNotAuthentic],
// [FactorError], the errors of Approver, PasswordSource and UserVerifier, and errors that wrap a
// protocol.Code: CodeLink, CodeTimeout, CodeStaleKey, CodeExpired if the user took too long, and the
// errors of message.P2.Acceptable. After it: [UnknownOutcomeError] or [RetryError], and with a known
// result only errors of the file system.
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

// apply sends M1s until an acceptable challenge arrives.
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

// unexpected returns the error for an answer that makes no progress, usually an ME.
func unexpected(answer []byte) error {
	me, err := message.ParseLinkError(answer)
	if err != nil {
		return fmt.Errorf("%w: message of kind %#x out of turn: %w", ErrNotAuthentic, answer[0]>>4, protocol.CodeFormat)
	}
	return &DeviceError{Code: me.Code, Retry: seconds(uint64(me.Retry))}
}

// update adopts the keys of an MU. It returns CodeStaleKey if the kem key stays the same, because
// another M1 would get the same MU.
func (c *Client) update(mu []byte) error {
	pinned, now := c.trustNow()
	next, err := pinned.Update(mu, now)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAuthentic, err)
	}
	before, _ := pinned.KEM()
	after, ok := next.KEM()
	if !ok || bytes.Equal(before.Raw, after.Raw) {
		return fmt.Errorf("key update contains no usable key: %w", pinned.Unusable(mu, now))
	}
	return c.save(func(s *state) { s.Trust = &next })
}

// challenge opens the first M2 and checks that the client may show it.
func (c *Client) challenge(e *exchange, req Request, m2 []byte) error {
	if err := e.receive(m2); err != nil {
		return err
	}
	if _, now := c.trustNow(); !e.kem.TakesM2At(now) {
		dated := e.kem.DateError(protocol.CodeStaleKey, now)
		dated.Peer = uint64(e.p2.Now)
		return dated
	}
	c.shows(trust.Shown{Use: trust.UseKEM, Epoch: e.kem.Epoch, Now: uint64(e.p2.Now)})
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

// ask sends a message and waits for one answer. It returns CodeLink, CodeTimeout, or the error of
// ctx. After an error, Send and Receive may continue until the link is closed.
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

// Approver asks the user. An error ends the authorization without any signature. ctx ends with the
// challenge.
type Approver interface {
	Decide(ctx context.Context, shown Shown) (protocol.Verdict, error)
}

// PasswordSource asks the user for the password, after the approval of a challenge that needs one.
// An error ends the authorization without a signature, or leaves it open after a wrong password. ctx
// ends with the challenge.
type PasswordSource interface {
	Password(ctx context.Context, ask PasswordAsk) (Password, error)
}

// UserVerifier verifies the user before the UV key signs. An error ends the authorization without a
// signature. ctx ends with the challenge.
type UserVerifier interface {
	VerifyUser(ctx context.Context, shown Shown) error
}

// PasswordAsk is the reason for a password prompt.
type PasswordAsk struct {
	Shown     Shown
	TriesLeft *uint64 // after a wrong one; nil: first attempt
}

// Password is a password as typed, in UTF-8. It does not print. The client overwrites the result of
// a [PasswordSource] after use; copies made while stretching remain until garbage collection.
type Password = secret.Bytes

// Shown is the information that the user sees and then signs. DeviceName and Text are the device's
// own words; mark them as such.
type Shown struct {
	Device       protocol.DeviceHandle
	DeviceName   string
	Service      protocol.Service
	ServiceName  string            // this client's own name for it
	Approves     *protocol.Service // the other client's service, with protocol.ServiceCoApproval
	ApprovesName string            // this client's own name for that
	Asked        *protocol.Serial  // the serial in question, with protocol.ServiceStatus
	Amount       *protocol.Amount
	Text         string
	Level        protocol.Level
	Factors      protocol.Factors
	Missing      protocol.Factors // required but unavailable: the user can only refuse
	TTL          time.Duration    // time left
}

func (c *Client) shown(e exchange) Shown {
	s := Shown{
		Device: e.p2.Device, DeviceName: e.p2.DeviceName, Service: e.p1.Service, ServiceName: c.Name(e.p1.Service),
		Approves: e.p2.FirstService, Asked: e.p1.Asked, Amount: e.p2.Amount, Text: e.p2.Text,
		Level: e.p2.Level, Factors: e.p2.Factors, Missing: e.p2.Factors &^ c.factors(), TTL: c.remaining(e),
	}
	if s.Approves != nil {
		s.ApprovesName = c.Name(*s.Approves)
	}
	return s
}

// others are the factors that do not come from this client. FactorStrict authenticates nothing.
const others = protocol.FactorSecondApprover | protocol.FactorStrict

// factors returns the factors that an approval by this client can require.
func (c *Client) factors() protocol.Factors {
	f := c.state.Enrolment.factors() | others
	if c.passwords == nil {
		f &^= protocol.FactorPassword
	}
	if c.verifier == nil {
		f &^= protocol.FactorUV
	}
	return f
}

// factors returns the factors that were enrolled.
func (e *enrolment) factors() protocol.Factors {
	f := protocol.FactorSignature
	if e.Password != nil {
		f |= protocol.FactorPassword
	}
	if e.UVKey != nil {
		f |= protocol.FactorUV
	}
	return f
}

// untilTTL bounds the user's time to answer.
func (c *Client) untilTTL(ctx context.Context, e exchange) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.remaining(e), protocol.CodeExpired)
}

// countersign asks the user and stores the M3 with the answer.
func (c *Client) countersign(ctx context.Context, e *exchange, approver Approver) error {
	bounded, cancel := c.untilTTL(ctx, *e)
	defer cancel()
	if bounded.Err() != nil {
		return context.Cause(bounded)
	}
	shown := c.shown(*e)
	verdict, err := approver.Decide(bounded, shown)
	switch {
	case bounded.Err() != nil:
		return context.Cause(bounded)
	case err != nil:
		return fmt.Errorf("asking the user: %w", err)
	}
	approval := message.Approval{Verdict: verdict, Slot: protocol.SlotSigning}
	if verdict == protocol.Approve {
		if approval, err = c.prove(bounded, *e, PasswordAsk{Shown: shown}); err != nil {
			return err
		}
	}
	return c.sign(ctx, e, approval)
}

// prove collects the factors that an approval needs besides the signature.
func (c *Client) prove(ctx context.Context, e exchange, ask PasswordAsk) (message.Approval, error) {
	a := message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning}
	if ask.Shown.Missing != 0 {
		return a, &FactorError{Missing: ask.Shown.Missing}
	}
	if e.p2.Factors.Has(protocol.FactorUV) {
		a.Slot = protocol.SlotUV
		if err := c.verifier.VerifyUser(ctx, ask.Shown); err != nil {
			return a, interrupted(ctx, fmt.Errorf("verifying the user: %w", err))
		}
	}
	if !e.p2.Factors.Has(protocol.FactorPassword) {
		return a, nil
	}
	typed, err := c.passwords.Password(ctx, ask)
	defer clear(typed)
	if err != nil {
		return a, interrupted(ctx, fmt.Errorf("asking for the password: %w", err))
	}
	verifier, err := c.state.Enrolment.Password.Verifier(c.state.Enrolment.client(), typed)
	if err != nil {
		return a, err
	}
	defer clear(verifier[:])
	proof := verifier.Proof(e.statement.Hash())
	a.Proof = proof[:]
	return a, interrupted(ctx, nil)
}

// interrupted returns the cause of ctx if it has ended, otherwise err.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sign makes and stores the M3 of the next attempt and erases the proof.
func (c *Client) sign(ctx context.Context, e *exchange, a message.Approval) error {
	public := c.state.Enrolment.key()
	if a.Slot == protocol.SlotUV {
		public = *c.state.Enrolment.uvKey()
	}
	key, err := c.keys.Load(ctx, public)
	if err != nil {
		return err
	}
	signature, err := message.Countersign(ctx, key, e.statement, a)
	if err != nil {
		return err
	}
	if c.remaining(*e) <= 0 {
		return protocol.CodeExpired
	}
	next := *e
	next.seal(a, signature)
	if err := c.keep(next); err != nil {
		return err
	}
	*e = next
	return nil
}

// keep stores an exchange.
func (c *Client) keep(e exchange) error {
	return c.save(func(s *state) { s.Session = &e.session })
}
