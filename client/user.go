package client

import (
	"context"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
)

// Approver asks the user. An error ends the authorization without a signature, not
// even one of refusal. ctx ends with the ttl of the challenge.
type Approver interface {
	Decide(ctx context.Context, shown Shown) (protocol.Verdict, error)
}

// PasswordSource asks the user for the password, after the approval of a challenge
// that needs one. An error ends the authorization without a signature; where the
// password before was wrong it leaves it open. ctx ends with the ttl.
type PasswordSource interface {
	Password(ctx context.Context, ask PasswordAsk) (Password, error)
}

// UserVerifier makes sure that it is the user, before the UV key signs. An error ends
// the authorization without a signature. ctx ends with the ttl.
type UserVerifier interface {
	VerifyUser(ctx context.Context, shown Shown) error
}

// PasswordAsk is what the password is asked for.
type PasswordAsk struct {
	Shown     Shown
	TriesLeft *uint64 // after a wrong one; nil: it is the first
}

// Password is a password as typed, in UTF-8. It does not print. The client overwrites
// what a [PasswordSource] gives once it is used; copies that stretching makes last
// until they are collected.
type Password []byte

// String keeps the password from printing.
func (Password) String() string { return "[redacted]" }

// GoString keeps %#v from printing the password.
func (Password) GoString() string { return "[redacted]" }

// Shown is what the user sees and then signs. DeviceName and Text are the device's
// own words and are to be marked as such.
type Shown struct {
	Device       protocol.DeviceHandle
	DeviceName   string
	Service      protocol.Service
	ServiceName  string            // this client's own name of it
	Approves     *protocol.Service // of another client, with protocol.ServiceCoApproval
	ApprovesName string            // this client's own name of that
	Asked        *protocol.Serial  // whose outcome is asked, with protocol.ServiceStatus
	Amount       *protocol.Amount
	Text         string
	Level        protocol.Level
	Factors      protocol.Factors
	Missing      protocol.Factors // that this client cannot give: it can only be refused
	TTL          time.Duration    // what is left of it
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

// others are the factors that are not this client's to give: the strict bit is none,
// and a second approver is somebody else.
const others = protocol.FactorSecondApprover | protocol.FactorStrict

// factors are those that an approval of this client can do with.
func (c *Client) factors() protocol.Factors {
	f := protocol.FactorSignature | others
	if c.state.Enrolment.Password != nil && c.passwords != nil {
		f |= protocol.FactorPassword
	}
	if c.state.Enrolment.UVKey != nil && c.verifier != nil {
		f |= protocol.FactorUV
	}
	return f
}

// untilTTL bounds what the user may take.
func (c *Client) untilTTL(ctx context.Context, e exchange) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.remaining(e), protocol.CodeExpired)
}

// countersign asks the user and makes M3 of the answer, durably.
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

// prove has the user give the factors that an approval needs besides the signature.
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

// interrupted is the cause of ctx where it has ended, else err.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sign makes the M3 of the next attempt, durably; the proof is erased.
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

// keep makes an exchange durable.
func (c *Client) keep(e exchange) error {
	return c.save(func(s *state) { s.Session = &e.session })
}
