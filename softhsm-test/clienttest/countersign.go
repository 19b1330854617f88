package clienttest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/protocol/receipt"
)

// client is an enrolled client.
type client struct {
	key      protocol.PublicKey
	uv       *protocol.PublicKey
	verifier *password.Verifier
}

// slot identifies the messages of one client with one counter.
type slot struct {
	client  protocol.ClientID
	counter uint32
}

func slotOf(p1 message.P1) slot { return slot{p1.Client, p1.Serial.Counter()} }

// seen is the history of a slot.
type seen struct {
	serial  protocol.Serial
	m1      []byte
	m3      [][]byte // by attempt
	answers []message.P4
	acts    int
	final   *message.AskedResult // nil: unused
}

// maxTries is the maximum number of passwords for one challenge.
const maxTries = 3

func (a *Appliance) countersignLocked(m3 []byte) ([]byte, error) {
	c := a.current
	if c == nil {
		return nil, protocol.CodeExpired
	}
	attempt, raw, err := c.channel.OpenM3(m3)
	if err != nil {
		return nil, err
	}
	p3, err := message.ParseP3(raw)
	if err != nil {
		return nil, err
	}
	s := a.slots[slotOf(c.p1)]
	if int(attempt) < len(s.m3) && !bytes.Equal(s.m3[attempt], m3) {
		a.t.Errorf("counter %d has two different M3 of attempt %d", c.p1.Serial.Counter(), attempt)
	}
	if int(attempt) > len(s.m3) || attempt > 0 && s.answers[attempt-1].Result != protocol.ResultRetry {
		a.t.Errorf("counter %d: attempt %d out of turn", c.p1.Serial.Counter(), attempt)
		return nil, protocol.CodeSerial
	}
	if int(attempt) == len(s.m3) {
		p4, err := a.decideLocked(c, p3, attempt)
		if err != nil {
			return nil, err
		}
		s.m3, s.answers = append(s.m3, m3), append(s.answers, p4)
		a.concludeLocked(c, s, p4)
	}
	var r message.ReceiptNonce
	_, _ = rand.Read(r[:])
	return c.channel.SealM4(m3, r, s.answers[attempt].Marshal()), nil
}

// concludeLocked records a decision.
func (a *Appliance) concludeLocked(c *challenge, s *seen, p4 message.P4) {
	if p4.Result == protocol.ResultRetry {
		return
	}
	s.final = &message.AskedResult{Result: p4.Result, Reason: p4.Reason}
	switch {
	case p4.Result == protocol.ResultPending:
		a.waiting = c
	case c.p1.Service == protocol.ServiceCoApproval:
		if a.waiting == nil {
			return
		}
		first := a.slots[slotOf(a.waiting.p1)]
		first.final, a.waiting = s.final, nil
		if p4.Result == protocol.ResultApproved {
			first.acts++
		}
	case p4.Result == protocol.ResultApproved && c.p1.Service >= protocol.FirstService:
		s.acts++
	}
}

func (a *Appliance) decideLocked(c *challenge, p3 message.P3, attempt uint8) (message.P4, error) {
	if !a.provenLocked(c, p3) {
		a.t.Errorf("countersignature of client %v is not good", c.p1.Client)
		return message.P4{Reason: protocol.CodeRefused}, nil
	}
	switch {
	case a.do.Deny != 0:
		return message.P4{Reason: a.do.Deny, Retry: a.do.DenyRetry}, nil
	case a.do.Result == protocol.ResultRetry:
		return retry(2), nil
	case p3.Verdict == protocol.Refuse:
		return message.P4{Reason: protocol.CodeUserRefused}, nil
	case c.p2.Factors.Has(protocol.FactorPassword) && !a.knowsLocked(c, p3):
		if left := maxTries - 1 - uint64(attempt); left > 0 {
			return retry(left), nil
		}
		return message.P4{Reason: protocol.CodePassword}, nil
	case c.p1.Service == protocol.ServiceStatus:
		return a.statusLocked(c), nil
	case c.p1.Service == protocol.ServiceCoApproval && a.waiting == nil:
		return message.P4{Reason: protocol.CodeSerial}, nil
	case c.p1.Service != protocol.ServiceCoApproval && c.p2.Factors.Has(protocol.FactorSecondApprover):
		return message.P4{Result: protocol.ResultPending, Reason: protocol.CodePending}, nil
	}
	return a.approveLocked(c)
}

func retry(left uint64) message.P4 {
	return message.P4{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: &left}
}

// provenLocked asserts that an approval has the requested factors, and reports whether the signature
// is valid.
func (a *Appliance) provenLocked(c *challenge, p3 message.P3) bool {
	enrolled := a.clients[c.p1.Client]
	if p3.Verdict == protocol.Approve {
		if c.p2.Factors.Has(protocol.FactorUV) != (p3.Slot == protocol.SlotUV) {
			a.t.Errorf("factors %v with slot %d", c.p2.Factors, p3.Slot)
		}
		if c.p2.Factors.Has(protocol.FactorPassword) != (p3.Proof != nil) {
			a.t.Errorf("factors %v with a proof of %d bytes", c.p2.Factors, len(p3.Proof))
		}
	}
	key := &enrolled.key
	if p3.Slot == protocol.SlotUV {
		key = enrolled.uv
	}
	return key != nil && message.VerifyCountersign(*key, c.statement, p3.Approval(), p3.Signature[:]) == nil
}

// knowsLocked checks the password.
func (a *Appliance) knowsLocked(c *challenge, p3 message.P3) bool {
	verifier := a.clients[c.p1.Client].verifier
	if verifier == nil {
		return false
	}
	proof := verifier.Proof(c.statement.Hash())
	return subtle.ConstantTimeCompare(proof[:], p3.Proof) == 1
}

// statusLocked answers service 2. It spends an unused serial.
func (a *Appliance) statusLocked(c *challenge) message.P4 {
	asked := *c.p1.Asked
	if asked.Counter() >= c.p1.Serial.Counter() {
		return message.P4{Reason: protocol.CodeSerial}
	}
	s := a.noteLocked(slot{c.p1.Client, asked.Counter()}, asked)
	switch {
	case s.serial != asked:
		return message.P4{Result: protocol.ResultApproved, Asked: &message.AskedResult{Reason: protocol.CodeSerial}}
	case s.final == nil:
		s.final = &message.AskedResult{Reason: protocol.CodeExpired}
	}
	p4 := message.P4{Result: protocol.ResultApproved, Asked: s.final}
	if s.final.Result == protocol.ResultApproved {
		p4.Performed = a.do.Performed
	}
	return p4
}

func (a *Appliance) approveLocked(c *challenge) (message.P4, error) {
	p4 := message.P4{Result: protocol.ResultApproved}
	if !a.do.Decide || c.p1.Capabilities&message.CapabilityFullReceipt == 0 {
		return p4, nil
	}
	d := receipt.Decision{
		Result: protocol.ResultApproved, Statement: c.statement.Hash(), Level: c.p2.Level, Factors: c.p2.Factors,
		IssuedAt: uint64(time.Now().Unix()), Lifetime: DefaultTTL, Device: a.device, Service: c.p1.Service, Amount: c.p2.Amount,
	}
	if c.p1.Service == protocol.ServiceCoApproval {
		second := d.Statement
		d.Statement, d.Service, d.SecondStatement = *c.p2.FirstStatement, *c.p2.FirstService, &second
	}
	var err error
	p4.Decision, err = receipt.Sign(context.Background(), a.decision, a.decisionEpoch, d)
	return p4, err
}
