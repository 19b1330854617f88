package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/harness/phone"
)

// customer is a phone that authorizes one thing after the other. A countersignature
// that got no answer is sent again, the same bytes, before anything else.
type customer struct {
	*phone.Phone
	way     way
	journal *journal
	open    *order
}

// order is one authorization on its way.
type order struct {
	*phone.Session
	serial protocol.Serial
	m2, m3 []byte
	handle []byte
	nonce  protocol.Nonce
}

// way is how messages of a phone come to the appliance.
type way interface {
	// apply sends M1 and fills m2 in.
	apply(context.Context, *order) exchange
	// countersign sends M3 and gives M4.
	countersign(context.Context, *order) ([]byte, exchange)
	// acts: who forwards also acts on an approval.
	acts() bool
}

// pause is the wait of a customer after a refusal.
const pause = 50 * time.Millisecond

// shop authorizes until ctx ends, and finishes the authorization under way.
func (c *customer) shop(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.step(context.WithoutCancel(ctx)) {
			_ = during(ctx, pause) // its end is seen above
		}
	}
}

// step makes an authorization, or sends the open one again. It returns false if the request was
// refused.
func (c *customer) step(ctx context.Context) bool {
	if c.open == nil && !c.begin(ctx) {
		return false
	}
	return c.settle(ctx)
}

func (c *customer) begin(ctx context.Context) bool {
	p1 := c.Next(door)
	p1.Capabilities = message.CapabilityFullReceipt
	session, err := c.Apply(p1.Marshal())
	if err != nil {
		c.journal.blame(err)
		return false
	}
	o := &order{Session: session, serial: p1.Serial, nonce: device.NewNonce()}
	e := c.way.apply(ctx, o)
	if c.journal.add(e); e.failed() {
		return false
	}
	if err := o.Open(o.m2); err != nil || o.P2.Code != 0 {
		c.journal.blame(fmt.Errorf("M2 of code %d: %w", uint8(o.P2.Code), err))
		return false
	}
	if o.m3, err = o.Countersign(ctx, protocol.Approve); err != nil {
		c.journal.blame(err)
		return false
	}
	c.open = o
	return true
}

func (c *customer) settle(ctx context.Context) bool {
	o := c.open
	m4, e := c.way.countersign(ctx, o)
	if c.journal.add(e); e.failed() {
		return false
	}
	p4, err := o.Result(o.m3, m4)
	if err != nil {
		c.journal.blame(fmt.Errorf("M4: %w", err))
		return false
	}
	c.open = nil
	if p4.Result != protocol.ResultApproved {
		c.journal.deny(p4.Reason)
		return true
	}
	keys := trust.Keyring{Root: c.Trust.Root, KeyCerts: c.Trust.KeyCerts(trust.UseDecision), Now: uint64(time.Now().Unix())}
	verify := func(b []byte) (receipt.Decision, error) { return receipt.Verify(keys, b) }
	if d, ok := c.journal.check(verify, p4.Decision); ok {
		c.journal.approve(approval{at: time.Now(), serial: o.serial, transaction: d.Transaction, acts: c.way.acts()})
	}
	return true
}

// overAPI is a device of the harness, which verifies what it is given.
type overAPI struct {
	gate    *device.Device
	journal *journal
}

func (w *overAPI) acts() bool { return false }

func (w *overAPI) post(ctx context.Context, path string, body []byte) ([]byte, exchange) {
	e := exchange{begun: time.Now()}
	answer, err := w.gate.Post(ctx, device.Call{Path: path, Type: deviceapi.BodyType, Body: body})
	e.took, e.err, e.code, e.retryAfter = time.Since(e.begun), err, answer.Code, answer.RetryAfter != "" && answer.RetryAfter != "0"
	if err == nil && answer.Status != http.StatusOK && e.code == 0 {
		e.err = fmt.Errorf("status %d without a code", answer.Status)
	}
	return answer.Body, e
}

func (w *overAPI) apply(ctx context.Context, o *order) exchange {
	req := deviceapi.ApplyRequest{M1: o.M1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: o.nonce}
	body, e := w.post(ctx, "/v1/apply", req.Marshal())
	if e.failed() {
		return e
	}
	res, err := deviceapi.ParseApplyResponse(body)
	o.m2, o.handle, e.err = res.M2, res.Handle, err
	return e
}

func (w *overAPI) countersign(ctx context.Context, o *order) ([]byte, exchange) {
	req := deviceapi.CountersignRequest{Handle: o.handle, M3: o.m3}
	body, e := w.post(ctx, "/v1/countersign", req.Marshal())
	if e.failed() {
		return nil, e
	}
	res, err := deviceapi.ParseCountersignResponse(body)
	if e.err = err; err == nil && res.Decision != nil {
		w.verify(o, res.Decision)
	}
	return res.M4, e
}

func (w *overAPI) verify(o *order, decision []byte) {
	check, err := w.gate.Check(o.nonce, o.m2)
	if err != nil {
		w.journal.blame(err)
		return
	}
	check.Services = []protocol.Service{door}
	w.journal.check(check.Verify, decision)
}

// overLink is a relay of the appliance.
type overLink struct {
	link string
	conn *link.Conn // nil: none
}

func (w *overLink) acts() bool { return true }

func (w *overLink) apply(ctx context.Context, o *order) exchange {
	w.hangUp()
	var e exchange
	o.m2, e = w.ask(ctx, o.M1)
	return e
}

func (w *overLink) countersign(ctx context.Context, o *order) ([]byte, exchange) {
	return w.ask(ctx, o.m3)
}

func (w *overLink) ask(ctx context.Context, msg []byte) (answer []byte, e exchange) {
	e = exchange{begun: time.Now(), overLink: true}
	answer, e.err = w.say(ctx, msg)
	e.took = time.Since(e.begun)
	if e.err != nil {
		w.hangUp()
		return nil, e
	}
	if me, err := message.ParseLinkError(answer); err == nil {
		e.code, e.retryAfter = me.Code, me.Retry != 0
	}
	return answer, e
}

func (w *overLink) say(ctx context.Context, msg []byte) ([]byte, error) {
	if w.conn == nil {
		conn, err := link.Dial(ctx, w.link)
		if err != nil {
			return nil, err
		}
		w.conn = &conn
	}
	return w.conn.Ask(msg)
}

func (w *overLink) hangUp() {
	if w.conn != nil {
		_ = w.conn.Close() // nothing is under way on it
		w.conn = nil
	}
}

// crowd lets all customers shop. stop waits until each has finished its authorization.
func (s *stage) crowd(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	for _, c := range s.customers {
		go func() {
			c.shop(ctx)
			done <- struct{}{}
		}()
	}
	return func() {
		cancel()
		for range s.customers {
			<-done
		}
	}
}

// settled sends open requests until they are answered: after a fault none may stay unanswered.
func (s *stage) settled(ctx context.Context) {
	for _, c := range s.customers {
		err := harness.Until(ctx, "an answer to what was open", func() (bool, error) {
			return c.open == nil || c.settle(ctx), nil
		})
		if err != nil {
			harness.Do(errors.Join(err, s.journal.last()))
			return
		}
	}
}

// audit compares the answers that phones and devices got with the records of the appliance and its
// relay: each serial was approved by one transaction, each is in the store and in the audit records
// once, and relays acted once on each of theirs and on nothing else.
func (s *stage) audit(ctx context.Context) {
	s.settled(ctx)
	approved := s.journal.approvals()
	twice, forRelay := doubles(approved)
	if harness.Break() == breakAct {
		s.actAgain()
	}
	s.Check(twice == 0, "serials approved by more than one transaction: %d of %d", twice, len(approved))
	tally, acted := s.tally(ctx, forRelay)
	decided := uint64(len(approved) + len(s.journal.denials()))
	s.Check(tally.Decisions == decided && tally.Audited == decided,
		"decisions answered %d, stored %d, audited %d", decided, tally.Decisions, tally.Audited)
	s.Check(acted == nil, "relay: %d approvals, %d acts%s", len(forRelay), tally.Acts, because(acted))
	s.Check(len(s.journal.bad) == 0, "signatures verified %d, bad ones or bad answers released %d%s",
		s.journal.verified, len(s.journal.bad), first(s.journal.bad))
}

// actAgain does once more what the relay has done first.
func (s *stage) actAgain() {
	raw := harness.Must(os.ReadFile(s.Hooklog))
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	harness.Do(os.WriteFile(s.Hooklog, append(append(raw, line...), '\n'), 0o600))
}

func first(all []error) string {
	if len(all) == 0 {
		return ""
	}
	return ": " + all[0].Error()
}

// doubles counts serials with two transactions, and gives the transactions that a
// relay acts on.
func doubles(approved []approval) (twice int, forRelay map[string]bool) {
	bySerial, forRelay := map[protocol.Serial]protocol.TransactionID{}, map[string]bool{}
	for _, a := range approved {
		if other, ok := bySerial[a.serial]; ok && other != a.transaction {
			twice++
		}
		bySerial[a.serial] = a.transaction
		if a.acts {
			forRelay[fmt.Sprint(a.transaction)] = true
		}
	}
	return twice, forRelay
}

// tally counts, once the relay has acted on all approvals. wrong is an error in its acts.
func (s *stage) tally(ctx context.Context, forRelay map[string]bool) (t harness.Tally, wrong error) {
	waited := harness.Until(ctx, "the acts of the relay", func() (bool, error) {
		acts, err := s.Acts()
		return len(acts) >= len(forRelay), err
	})
	acts := harness.Must(s.Acts())
	if wrong = waited; wrong == nil {
		wrong = judge(acts, forRelay)
	}
	return harness.Must(s.Tally(ctx)), wrong
}

func judge(acts []harness.Act, forRelay map[string]bool) error {
	seen := map[string]bool{}
	for _, act := range acts {
		if seen[act.Transaction] {
			return fmt.Errorf("%s was acted on twice", act.Transaction)
		}
		if seen[act.Transaction] = true; !forRelay[act.Transaction] {
			return fmt.Errorf("%s was acted on, and no phone knows of it", act.Transaction)
		}
	}
	return nil
}
