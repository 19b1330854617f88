package client

import (
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
)

// session is one authorization that has begun. All of it is on the disk before the
// message it was last changed for leaves; it is erased, secrets first of all, when
// the result is known or the ttl is over. As JSON, binary members in base64url:
//
//	{"started": when the first byte of M1 left, by the wall clock,
//	 "root": id of the root that certified the kem key, "p1", "m1", "es",
//	 ?"m2": the first authentic one, ?"m3": with m2}
type session struct {
	Started time.Time       `json:"started"`
	Root    protocol.Base64 `json:"root"`
	P1      protocol.Base64 `json:"p1"`
	M1      protocol.Base64 `json:"m1"`
	ES      protocol.Base64 `json:"es"`
	M2      protocol.Base64 `json:"m2,omitempty"`
	M3      protocol.Base64 `json:"m3,omitempty"`
}

// String keeps ES from printing.
func (s session) String() string { return "session of " + fmt.Sprint(s.Started) }

// GoString keeps ES from printing.
func (s session) GoString() string { return s.String() }

// exchange is a session with what its messages say.
type exchange struct {
	session
	kem       protocol.KeyCert // M1's; only while this process makes the exchange
	p1        protocol.P1
	channel   protocol.Channel
	p2        protocol.P2
	statement protocol.Statement
	p3        protocol.P3
}

// open decodes a session as far as it has come.
func (s session) open() (exchange, error) {
	e := exchange{session: s}
	var err error
	if e.p1, err = protocol.ParseP1(s.P1); err != nil {
		return e, err
	}
	if _, err := protocol.ParseM1(s.M1); err != nil {
		return e, err
	}
	if len(s.ES) != len(protocol.Secret{}) || len(s.Root) != len(protocol.RootID{}) {
		return e, errors.New("es or root has another length")
	}
	if s.M2 == nil {
		if s.M3 != nil {
			return e, errors.New("M3 without M2")
		}
		return e, nil
	}
	if err := e.receive(s.M2); err != nil || s.M3 == nil {
		return e, err
	}
	_, p3, err := e.channel.OpenM3(s.M3)
	if err != nil {
		return e, err
	}
	e.p3, err = protocol.ParseP3(p3)
	return e, err
}

// receive opens an M2: [ErrNotAuthentic] if it is not made for this M1.
func (e *exchange) receive(m2 []byte) error {
	chal, err := protocol.ChallengeOf(m2)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAuthentic, err)
	}
	channel := protocol.NewChannel(protocol.Secret(e.ES), e.M1, chal)
	raw, err := channel.OpenM2(m2)
	if err != nil {
		return fmt.Errorf("M2: %w", ErrNotAuthentic)
	}
	p2, err := protocol.ParseP2(raw)
	if err != nil {
		return err
	}
	e.M2, e.channel, e.p2 = m2, channel, p2
	e.statement = protocol.NewStatement(protocol.RootID(e.Root), e.P1, chal, raw)
	return nil
}

// seal makes M3 of the first attempt.
func (e *exchange) seal(a protocol.Approval, signature [protocol.SignatureSize]byte) {
	e.p3 = protocol.P3{Verdict: a.Verdict, Slot: a.Slot, Proof: a.Proof, Signature: signature}
	e.M3 = e.channel.SealM3(0, e.p3.Marshal())
}

// result opens an M4. Any error means that nothing is known yet.
func (e *exchange) result(m4 []byte) (protocol.P4, error) {
	if kind, err := protocol.Kind(m4); err != nil {
		return protocol.P4{}, err
	} else if kind != protocol.KindM4 {
		return protocol.P4{}, fmt.Errorf("message of kind %d in place of M4: %w", kind, protocol.CodeFormat)
	}
	raw, err := e.channel.OpenM4(e.M3, m4)
	if err != nil {
		return protocol.P4{}, fmt.Errorf("M4: %w", ErrNotAuthentic)
	}
	p4, err := protocol.ParseP4(raw)
	if err != nil {
		return p4, err
	}
	if p4.Result == protocol.ResultApproved && e.p3.Verdict != protocol.Approve {
		return p4, fmt.Errorf("a refusal was answered with approved: %w", protocol.CodeFormat)
	}
	return p4, nil
}

// begin makes an M1 with a new serial under the newest kem key, durably.
func (c *Client) begin(req Request) (exchange, error) {
	trust, _ := c.trustNow()
	kem, ok := trust.Key(protocol.UseKEM)
	if !ok {
		return exchange{}, fmt.Errorf("no key to encrypt to: %w", protocol.CodeCertificate)
	}
	if c.state.Counter == ^uint32(0) {
		return exchange{}, fmt.Errorf("all counters are used, enrol anew: %w", protocol.CodeSerial)
	}
	p1 := req.p1(c.state.Enrolment.client(), protocol.NewSerial(c.state.Counter+1, randomTail()))
	raw := p1.Marshal()
	if _, err := protocol.ParseP1(raw); err != nil {
		return exchange{}, fmt.Errorf("request: %w", err)
	}
	root := trust.Root.RootID()
	m1, es, err := protocol.SealM1(root, kem.Epoch, kem.Key, raw)
	if err != nil {
		return exchange{}, fmt.Errorf("making M1: %w", err)
	}
	c.started = c.now()
	s := session{Started: c.started.UTC(), Root: root[:], P1: raw, M1: m1, ES: es[:]}
	if err := c.save(func(next *state) {
		next.Counter, next.Session = p1.Serial.Counter(), &s
		next.Trust = &trust
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

// Pending gives the authorization that was countersigned and whose outcome is
// unknown, if there is one that [Client.Resume] can still settle.
func (c *Client) Pending() (r Receipt, ok bool) {
	if c.state.Session == nil || c.state.Session.M3 == nil {
		return Receipt{}, false
	}
	e, err := c.state.Session.open()
	if err != nil || c.remaining(e) <= 0 {
		return Receipt{}, false
	}
	r, err = newReceipt(e.statement, e.p3.Verdict, c.started)
	return r, err == nil
}

// giveUp turns a countersigned session into a receipt of unknown outcome, and
// erases it.
func (c *Client) giveUp(e exchange) error {
	r, err := newReceipt(e.statement, e.p3.Verdict, c.now())
	if err != nil {
		return err
	}
	if err := c.storeReceipt(r); err != nil {
		return err
	}
	return c.endSession()
}

// finish turns an authentic result into a receipt. The receipt is durable before
// the session is erased: a crash in between leaves both, and the receipt counts.
func (c *Client) finish(e exchange, p4 protocol.P4) (Receipt, error) {
	r, err := newReceipt(e.statement, e.p3.Verdict, c.now())
	if err != nil {
		return r, err
	}
	r.Known, r.Result, r.Reason = true, p4.Result, p4.Reason
	if p4.Result == protocol.ResultRetry {
		return r, &RetryError{Serial: r.Serial, TriesLeft: *p4.TriesLeft}
	}
	if p4.Retry != nil {
		r.Retry = seconds(*p4.Retry)
	}
	r.Decision = p4.Decision
	r.Verified = r.Decision != nil && c.verifies(r)
	if err := c.storeReceipt(r); err != nil {
		return r, err
	}
	return r, c.endSession()
}

func (c *Client) verifies(r Receipt) bool {
	trust, now := c.trustNow()
	keys := protocol.Keyring{Root: trust.Root, KeyCerts: trust.KeyCerts(protocol.UseDecision), Now: now}
	d, err := keys.Verify(r.Decision)
	return err == nil && d.Statement == r.Statement.Hash() && d.Result == r.Result && d.Service == r.Service
}
