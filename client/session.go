package client

import (
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// session is one authorization that has begun. All of it is on the disk before the
// message it was last changed for leaves; it is erased, secrets first of all, when
// the result is known or the ttl is over. As JSON, binary members in base64url:
//
//	{"started": when the first byte of M1 left, by the wall clock,
//	 "root": id of the root that certified the kem key, "p1", "m1", "es",
//	 ?"m2": the first authentic one, ?"m3": of the newest attempt, with m2,
//	 ?"tries_left": the password in m3 is wrong, and so many may follow}
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

// String keeps ES from printing.
func (s session) String() string { return "session of " + fmt.Sprint(s.Started) }

// GoString keeps ES from printing.
func (s session) GoString() string { return s.String() }

// exchange is a session with what its messages say.
type exchange struct {
	session
	kem       trust.KeyCert // M1's; only while this process makes the exchange
	p1        message.P1
	channel   message.Channel
	p2        message.P2
	statement message.Statement

	// What is remembered of M3: the proof is not.
	attempt uint8
	verdict protocol.Verdict
	proved  bool
}

// counts is false for what changes nothing and leaves no receipt.
func (e exchange) counts() bool {
	return e.p1.Service != protocol.ServiceDryRun && e.p1.Service != protocol.ServiceStatus
}

// open decodes a session as far as it has come.
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
		return e, errors.New("es or root has another length")
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

// recall reads again what M3 says.
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

// receive opens an M2: [ErrNotAuthentic] if it is not made for this M1.
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

// seal makes M3 of the next attempt and erases the proof.
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

// result opens an M4. Any error means that nothing is known yet.
func (e *exchange) result(m4 []byte) (message.P4, error) {
	if kind, err := message.Kind(m4); err != nil {
		return message.P4{}, err
	} else if kind != message.KindM4 {
		return message.P4{}, fmt.Errorf("message of kind %d in place of M4: %w", kind, protocol.CodeFormat)
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

// begin makes an M1 with a new serial under the newest kem key, durably.
func (c *Client) begin(req Request) (exchange, error) {
	pinned, _ := c.trustNow()
	kem, ok := pinned.Key(trust.UseKEM)
	if !ok {
		return exchange{}, fmt.Errorf("no key to encrypt to: %w", protocol.CodeCertificate)
	}
	if c.state.Counter == ^uint32(0) {
		return exchange{}, fmt.Errorf("all counters are used, enrol anew: %w", protocol.CodeSerial)
	}
	p1 := req.p1(c.state.Enrolment.client(), protocol.NewSerial(c.state.Counter+1, randomTail()))
	raw := p1.Marshal()
	if _, err := message.ParseP1(raw); err != nil {
		return exchange{}, fmt.Errorf("request: %w", err)
	}
	root := pinned.Root.RootID()
	m1, es, err := message.SealM1(root, kem.Epoch, kem.Key, raw)
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

// remaining is what is left of the ttl; of a session from an earlier process by
// the wall clock, and nothing if that went back since.
func (c *Client) remaining(e exchange) time.Duration {
	elapsed := c.now().Sub(c.started)
	if elapsed < 0 {
		return 0
	}
	return seconds(e.p2.TTL) - elapsed
}

// Pending gives the authorization that was countersigned and has no final answer,
// if there is one that [Client.Resume] can still go on with: its outcome is unknown, or
// it is protocol.ResultRetry and awaits another password.
func (c *Client) Pending() (r Receipt, ok bool) {
	if r, ok = c.open(); !ok {
		return r, false
	}
	e, err := c.state.Session.open()
	return r, err == nil && c.remaining(e) > 0
}

// open gives the session that was countersigned, if it counts, as a receipt.
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

// left is the receipt of a session that has come to no end.
func (c *Client) left(e exchange) (Receipt, error) {
	r, err := newReceipt(e.statement, e.verdict, c.started)
	if e.TriesLeft != nil {
		r.Known, r.Result, r.Reason, r.TriesLeft = true, protocol.ResultRetry, protocol.CodePassword, e.TriesLeft
	}
	return r, err
}

// putAside ends what was left open, as a receipt where that may matter.
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

// giveUp turns a countersigned session into a receipt, and erases it. The outcome is
// unknown, but for a wrong password that no other one followed: then nobody can
// approve it any more.
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

// finish turns an authentic result into a receipt. The receipt is durable before
// the session is erased: a crash in between leaves both, and the receipt counts.
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
		r.KeyCert, err = c.checkDecision(r)
		r.Verified = err == nil
	}
	if e.counts() {
		if err := c.storeReceipt(r); err != nil {
			return r, err
		}
	}
	return r, c.endSession()
}
