package client

import (
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// session is an authorization in progress. The client stores it before it sends the message that
// changed it, and erases it, secrets first, when the result is known or the ttl is over. As JSON,
// binary members in base64url:
//
//	{"started": wall-clock time when the first byte of M1 left,
//	 "root": id of the root that certified the kem key, "p1", "m1", "es",
//	 ?"m2": the first authentic one, ?"m3": of the newest attempt, with m2,
//	 ?"tries_left": number of attempts left after the wrong password in m3}
type session struct {
	Started time.Time       `json:"started"`
	Root    protocol.Base64 `json:"root"`
	P1      protocol.Base64 `json:"p1"`
	M1      protocol.Base64 `json:"m1"`
	ES      protocol.Base64 `json:"es"`
	M2      protocol.Base64 `json:"m2,omitempty"`
	M3      protocol.Base64 `json:"m3,omitempty"`

	TriesLeft *uint64 `json:"tries_left,omitempty"`
}

// String prevents ES from printing.
func (s session) String() string { return "session of " + fmt.Sprint(s.Started) }

// GoString prevents ES from printing.
func (s session) GoString() string { return s.String() }

// exchange is a session with its decoded messages.
type exchange struct {
	session
	kem       trust.KeyCert // M1's; only in the process that made the exchange
	p1        message.P1
	channel   message.Channel
	p2        message.P2
	statement message.Statement

	// The contents of M3, without the proof.
	attempt uint8
	verdict protocol.Verdict
	proved  bool
}

// counts reports whether the request has an effect and leaves a receipt.
func (e exchange) counts() bool {
	return e.p1.Service != protocol.ServiceDryRun && e.p1.Service != protocol.ServiceStatus
}

// open decodes the messages that a session has.
func (s session) open() (exchange, error) {
	e := exchange{session: s}
	var err error
	if e.p1, err = message.ParseP1(s.P1); err != nil {
		return e, err
	}
	if _, err := message.ParseM1(s.M1); err != nil {
		return e, err
	}
	if len(s.ES) != len(message.Secret{}) || len(s.Root) != len(protocol.RootID{}) {
		return e, errors.New("es or root has the wrong length")
	}
	if s.M2 == nil {
		if s.M3 != nil {
			return e, errors.New("M3 without M2")
		}
		return e, nil
	}
	if s.TriesLeft != nil && s.M3 == nil {
		return e, errors.New("tries without M3")
	}
	if err := e.receive(s.M2); err != nil || s.M3 == nil {
		return e, err
	}
	return e, e.recall()
}

// recall decodes M3.
func (e *exchange) recall() error {
	attempt, raw, err := e.channel.OpenM3(e.M3)
	if err != nil {
		return err
	}
	defer clear(raw)
	p3, err := message.ParseP3(raw)
	if err != nil {
		return err
	}
	defer clear(p3.Proof)
	e.attempt, e.verdict, e.proved = attempt, p3.Verdict, p3.Proof != nil
	return nil
}

// receive opens an M2. It returns [ErrNotAuthentic] if the M2 does not answer this M1.
func (e *exchange) receive(m2 []byte) error {
	chal, err := message.ChallengeOf(m2)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAuthentic, err)
	}
	channel := message.NewChannel(message.Secret(e.ES), e.M1, chal)
	raw, err := channel.OpenM2(m2)
	if err != nil {
		return fmt.Errorf("M2: %w", ErrNotAuthentic)
	}
	p2, err := message.ParseP2(raw)
	if err != nil {
		return err
	}
	e.M2, e.channel, e.p2 = m2, channel, p2
	e.statement = message.NewStatement(protocol.RootID(e.Root), e.P1, chal, raw)
	return nil
}

// seal makes the M3 of the next attempt and erases the proof.
func (e *exchange) seal(a message.Approval, signature [protocol.SignatureSize]byte) {
	if e.M3 != nil {
		e.attempt++
	}
	raw := message.P3{Verdict: a.Verdict, Slot: a.Slot, Proof: a.Proof, Signature: signature}.Marshal()
	e.M3, e.TriesLeft = e.channel.SealM3(e.attempt, raw), nil
	e.verdict, e.proved = a.Verdict, a.Proof != nil
	clear(raw)
	clear(a.Proof)
}

// result opens an M4. After any error the result is unknown.
func (e *exchange) result(m4 []byte) (message.P4, error) {
	if kind, err := message.Kind(m4); err != nil {
		return message.P4{}, err
	} else if kind != message.KindM4 {
		return message.P4{}, fmt.Errorf("message of kind %d instead of M4: %w", kind, protocol.CodeFormat)
	}
	raw, err := e.channel.OpenM4(e.M3, m4)
	if err != nil {
		return message.P4{}, fmt.Errorf("M4: %w", ErrNotAuthentic)
	}
	p4, err := message.ParseP4(raw)
	if err != nil {
		return p4, err
	}
	if e.verdict != protocol.Approve && p4.Result != protocol.ResultDenied {
		return p4, fmt.Errorf("a refusal was answered with %v: %w", p4.Result, protocol.CodeFormat)
	}
	return p4, nil
}

// begin makes and stores an M1 with a new serial under the newest kem key.
func (c *Client) begin(req Request) (exchange, error) {
	pinned, _ := c.trustNow()
	kem, ok := pinned.KEM()
	if !ok {
		return exchange{}, fmt.Errorf("no key to encrypt to: %w", protocol.CodeCertificate)
	}
	if c.state.Counter == ^uint32(0) {
		return exchange{}, fmt.Errorf("all counters are used; enrol again: %w", protocol.CodeSerial)
	}
	p1 := req.p1(c.state.Enrolment.client(), protocol.NewSerial(c.state.Counter+1, randomTail()))
	raw := p1.Marshal()
	if _, err := message.ParseP1(raw); err != nil {
		return exchange{}, fmt.Errorf("request: %w", err)
	}
	root := pinned.Root.RootID()
	m1, es, err := message.SealM1(kem.Recipient(root), raw)
	if err != nil {
		return exchange{}, fmt.Errorf("making M1: %w", err)
	}
	c.started = c.now()
	s := session{Started: c.started.UTC(), Root: root[:], P1: raw, M1: m1, ES: es[:]}
	if err := c.save(func(next *state) {
		next.Counter, next.Session = p1.Serial.Counter(), &s
		next.Trust = &pinned
	}); err != nil {
		return exchange{}, err
	}
	return exchange{session: s, p1: p1, kem: kem.KeyCert}, nil
}

// remaining returns the rest of the ttl. A session from an earlier process is measured by the wall
// clock, and has no time left if the clock went back.
func (c *Client) remaining(e exchange) time.Duration {
	elapsed := c.now().Sub(c.started)
	if elapsed < 0 {
		return 0
	}
	return seconds(e.p2.TTL) - elapsed
}

// Pending returns the countersigned authorization without a final answer that [Client.Resume] can
// continue. Its outcome is unknown, or protocol.ResultRetry if it awaits another password.
func (c *Client) Pending() (r Receipt, ok bool) {
	if r, ok = c.open(); !ok {
		return r, false
	}
	e, err := c.state.Session.open()
	return r, err == nil && c.remaining(e) > 0
}

// open returns the countersigned session as a receipt, if it counts.
func (c *Client) open() (r Receipt, ok bool) {
	if c.state.Session == nil || c.state.Session.M3 == nil {
		return Receipt{}, false
	}
	e, err := c.state.Session.open()
	if err != nil || !e.counts() {
		return Receipt{}, false
	}
	r, err = c.left(e)
	return r, err == nil
}

// left returns the receipt of a session without a result.
func (c *Client) left(e exchange) (Receipt, error) {
	r, err := newReceipt(e.statement, e.verdict, c.started)
	if e.TriesLeft != nil {
		r.Known, r.Result, r.Reason, r.TriesLeft = true, protocol.ResultRetry, protocol.CodePassword, e.TriesLeft
	}
	return r, err
}

// putAside ends an open session, with a receipt if it may have had an effect.
func (c *Client) putAside() error {
	if c.state.Session == nil || c.state.Session.M3 == nil {
		return nil
	}
	e, err := c.state.Session.open()
	if err != nil {
		return err
	}
	return c.giveUp(e)
}

// giveUp turns a countersigned session into a receipt and erases it. The outcome is unknown, unless
// the last password was wrong: then no one can approve it any more.
func (c *Client) giveUp(e exchange) error {
	if !e.counts() {
		return c.endSession()
	}
	r, err := c.left(e)
	if err != nil {
		return err
	}
	r.At = stamp(c.now())
	if r.Known {
		r.Result = protocol.ResultDenied
	}
	if err := c.storeReceipt(r); err != nil {
		return err
	}
	return c.endSession()
}

// finish turns an authentic result into a receipt. It stores the receipt before it erases the
// session. After a crash in between both exist, and the receipt takes precedence.
func (c *Client) finish(e exchange, p4 message.P4) (Receipt, error) {
	if e.p1.Service == protocol.ServiceStatus {
		return c.finishStatus(e, p4)
	}
	r, err := newReceipt(e.statement, e.verdict, c.now())
	if err != nil {
		return r, err
	}
	r.Known, r.Result, r.Reason, r.TriesLeft = true, p4.Result, p4.Reason, p4.TriesLeft
	if p4.Retry != nil {
		r.Retry = seconds(*p4.Retry)
	}
	if r.Decision = p4.Decision; r.Decision != nil {
		s, err := c.checkDecision(r)
		if r = r.judged(err); r.Verified {
			r.KeyCert = s.by.Raw
			c.shows(trust.Shown{Use: trust.UseDecision, Epoch: s.by.Epoch, Now: s.issuedAt})
		}
	}
	if e.counts() {
		if err := c.storeReceipt(r); err != nil {
			return r, err
		}
	}
	return r, c.endSession()
}
