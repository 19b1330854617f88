package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// busyPause is after how long a phone that was turned away may try again.
const busyPause = 2 * time.Second

// apply answers an M1. It is applied once: the same bytes, on whatever link, get the
// answer that is there.
func (r *Relay) apply(ctx context.Context, p *phone, m1 []byte) ([]byte, error) {
	s, isNew, err := r.table.find(m1)
	if err != nil {
		return nil, err
	}
	if isNew {
		s.err = r.applyNew(ctx, s, ask{p.class, m1})
		if s.err != nil { // it may be tried again
			r.table.remove(s)
		}
		close(s.ready)
	}
	if err := s.await(ctx); err != nil {
		return nil, err
	}
	if s.handle != nil {
		p.session = s
	}
	return s.answer, nil
}

// ask is an M1 and the kind of link it came on.
type ask struct {
	class deviceapi.LinkClass
	m1    []byte
}

// applyNew applies a new M1 with the order that is next. Without one a phone can
// still ask for a status or a dry run; it is told of the lack if it wants more.
func (r *Relay) applyNew(ctx context.Context, s *session, a ask) error {
	lack := r.order(s)
	if _, err := rand.Read(s.nonce[:]); err != nil {
		return fmt.Errorf("making a nonce: %w", err)
	}
	s.root = r.client.Trust().Root.RootID()
	request := deviceapi.ApplyRequest{
		M1: a.m1, Order: wired(s.ticket.order, s.second != nil), Link: a.class, Floor: r.config.Floor,
		Nonce: s.nonce, Strict: r.config.Strict,
	}
	if s.second != nil {
		request.Handle = s.second.handle
	}
	sent := time.Now()
	answer, err := r.client.Apply(ctx, request)
	if err == nil {
		err = s.fill(answer, sent)
	}
	if err == nil && lack != nil && s.isRefused() {
		err = lack
	}
	if err != nil || s.handle == nil {
		s.giveBack()
		return err
	}
	time.AfterFunc(time.Until(s.expires), s.expire)
	return nil
}

// order gives a session its order: that of the approval which waits for a second
// approver, else the next; lack says why there is none.
func (r *Relay) order(s *session) (lack error) {
	if s.second = r.pendings.current(); s.second != nil {
		s.ticket, s.isLeft = s.second.ticket, true
		return nil
	}
	if s.ticket, lack = r.orders.take(); lack != nil {
		s.ticket = standingTicket(deviceapi.Order{}, true)
	}
	return lack
}

// giveBack is for a session that needs no order.
func (s *session) giveBack() {
	if s.leave() {
		s.ticket.putBack()
	}
}

// isRefused says whether the answer to M1 is an M2 of error form.
func (s *session) isRefused() bool {
	kind, err := message.Kind(s.answer)
	return err == nil && kind == message.KindM2 && s.handle == nil
}

// fill takes over what the appliance answered; sent is when it was asked.
func (s *session) fill(answer deviceapi.ApplyResponse, sent time.Time) error {
	kind, err := message.Kind(answer.M2)
	if err != nil || kind != message.KindM2 && kind != message.KindKeyUpdate {
		return fmt.Errorf("answer to M1 is of kind %d, %v: %w", kind, err, protocol.CodeServerUnreachable)
	}
	s.answer, s.expires = answer.M2, sent.Add(errorLife)
	if answer.Handle == nil {
		return nil
	}
	if s.chal, err = message.ChallengeOf(answer.M2); err != nil {
		return fmt.Errorf("answer to M1 with a handle: %v: %w", err, protocol.CodeServerUnreachable)
	}
	s.handle = answer.Handle
	s.expires = sent.Add(time.Duration(min(answer.TTL, maxTTL)) * time.Second)
	return nil
}

// maxTTL bounds what the device remembers of a challenge, in seconds.
const maxTTL = 3600

// countersign forwards an M3, whatever was forwarded before: S knows repeats. An
// M3 on a link without an M1 belongs to the session in which it was sent before, else
// to the newest of the device: a phone that lost its link need not send M1 again.
func (r *Relay) countersign(ctx context.Context, p *phone, m3 []byte) ([]byte, error) {
	s := p.session
	if s == nil {
		s = r.table.of(m3)
	}
	if s == nil || !s.begin() {
		return nil, protocol.CodeExpired
	}
	defer s.end()
	r.pendings.begin(s.second)
	defer r.pendings.end(s.second)
	sent := s.sentAt(m3)
	answer, err := r.client.Countersign(ctx, deviceapi.CountersignRequest{Handle: s.handle, M3: m3})
	if err != nil {
		return nil, err
	}
	if kind, err := message.Kind(answer.M4); err != nil || kind != message.KindM4 {
		return nil, fmt.Errorf("answer to M3 is of kind %d, %v: %w", kind, err, protocol.CodeServerUnreachable)
	}
	r.decided(ctx, s, verdict{answer: answer, m3: m3, sent: sent})
	return answer.M4, nil
}

// verdict is the answer to an M3, and when that M3 was first sent.
type verdict struct {
	answer deviceapi.CountersignResponse
	m3     []byte
	sent   time.Time
}

// decided does what an answer asks for. Nothing of it concerns the phone, which
// gets M4 in any case.
func (r *Relay) decided(ctx context.Context, s *session, v verdict) {
	if v.answer.Decision == nil {
		r.undecided(s, v.answer.Result)
		return
	}
	d, err := r.verify(ctx, s, v)
	if err != nil {
		code, _ := protocol.CodeOf(err)
		r.log.Error("decision refused", "code", uint8(code), "error", err)
		r.metrics.decisions.WithLabelValues("refused").Inc()
		r.conclude(s, Settlement{Result: ResultRefused, Code: code})
		return
	}
	r.metrics.decisions.WithLabelValues(d.Result.String()).Inc()
	switch d.Result {
	case protocol.ResultApproved:
		r.act(ctx, s, d)
	case protocol.ResultPending:
		r.wait(s, d, v.answer.NextHandle)
	default:
		r.deny(s, d)
	}
}

// deny notes a signed denial; that of a second approval ends the order of the first.
func (r *Relay) deny(s *session, d receipt.Decision) {
	r.log.Info("decision", "result", d.Result.String(), "transaction", d.Transaction.String(), "service", uint64(d.Service))
	o := Settlement{Result: d.Result.String(), Code: d.Reason, Decision: &d}
	if p := s.approved(d); p != nil {
		r.pendings.finish(p)
		if p.ticket.claim() {
			p.ticket.settle(o)
		}
	}
	r.conclude(s, o)
}

// undecided is an answer without a decision. A retry leaves handle and order as
// they are; a denial, which S makes no decision for, ends the order, unless it waits
// for a second approver: another may come. Approved are a status and a dry run;
// which service it was the device cannot see, and without a decision it acts in no
// case. The order goes to the next phone.
func (r *Relay) undecided(s *session, result protocol.Result) {
	switch result {
	case protocol.ResultRetry:
		r.metrics.decisions.WithLabelValues(result.String()).Inc()
	case protocol.ResultApproved, protocol.ResultPending:
		r.log.Info("nothing to act on: no decision", "result", result.String(), "code", uint8(protocol.CodeFormat))
		r.metrics.decisions.WithLabelValues("none").Inc()
		if result == protocol.ResultApproved {
			s.giveBack()
		}
	default:
		r.metrics.decisions.WithLabelValues(result.String()).Inc()
		reason, _ := receipt.ReasonFor(result)
		r.conclude(s, Settlement{Result: result.String(), Code: reason})
	}
}

// verify checks a decision as PROTOCOL.md §3.1 asks. One by a key that the device
// does not know yet has the trust refreshed. One by a key that it does not know any
// more, because it has just followed to a new root, is asked for again: the same M3 has
// the same decision, signed by the key of now.
func (r *Relay) verify(ctx context.Context, s *session, v verdict) (receipt.Decision, error) {
	d, err := r.check(s, v)
	if !errors.Is(err, protocol.CodeCertificate) {
		return d, err
	}
	if err := r.client.RefreshTrust(ctx); err != nil {
		r.log.Warn("refreshing trust failed", "error", err)
	}
	if d, err = r.check(s, v); !errors.Is(err, protocol.CodeCertificate) {
		return d, err
	}
	again, askErr := r.client.Countersign(ctx, deviceapi.CountersignRequest{Handle: s.handle, M3: v.m3})
	if askErr != nil || again.Decision == nil {
		return d, err
	}
	v.answer.Decision = again.Decision
	return r.check(s, v)
}

func (r *Relay) check(s *session, v verdict) (receipt.Decision, error) {
	pinned := r.client.Trust()
	challenges, roots := []protocol.Challenge{s.chal}, []protocol.RootID{s.root}
	if s.second != nil {
		challenges, roots = []protocol.Challenge{s.second.chal, s.chal}, []protocol.RootID{s.second.root, s.root}
	}
	d, err := receipt.Check{
		Root: pinned.Root, KeyCerts: append(pinned.KeyCerts(trust.UseDecision), pinned.KeyCerts(trust.UseClientCA)...),
		Now:   pinned.Time(uint64(time.Now().Unix())),
		Begun: roots, Device: r.client.Identity().ID, Nonce: s.nonce, Challenges: challenges,
		Services: s.ticket.order.Services, Amount: s.ticket.order.Amount, Floor: r.config.Floor, Elapsed: time.Since(v.sent),
		Strict: r.config.Strict,
	}.Verify(v.answer.Decision)
	if err != nil {
		return d, err
	}
	if err := s.checkPending(d); err != nil {
		return d, err
	}
	if s.ticket.isExact && s.ticket.order.Amount == nil && d.Amount != nil {
		return d, fmt.Errorf("decision for %v, ordered without an amount: %w", *d.Amount, protocol.CodePolicy)
	}
	return d, nil
}

// conclude notes a result without an act.
func (r *Relay) conclude(s *session, o Settlement) {
	s.settle(o)
	r.status.update(o.last())
}
