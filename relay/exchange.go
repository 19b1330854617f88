package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
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
	class protocol.LinkClass
	m1    []byte
}

// applyNew applies a new M1 with the order that is next.
func (r *Relay) applyNew(ctx context.Context, s *session, a ask) error {
	ticket, err := r.orders.take()
	if err != nil {
		return err
	}
	if _, err := rand.Read(s.nonce[:]); err != nil {
		return fmt.Errorf("making a nonce: %w", err)
	}
	s.ticket = ticket
	sent := time.Now()
	answer, err := r.client.Apply(ctx, protocol.ApplyRequest{
		M1: a.m1, Order: ticket.order, Link: a.class, Floor: r.config.Floor, Nonce: s.nonce,
	})
	if err == nil {
		err = s.fill(answer, sent)
	}
	if err != nil || s.handle == nil {
		ticket.putBack()
		return err
	}
	time.AfterFunc(time.Until(s.expires), s.expire)
	return nil
}

// fill takes over what the appliance answered; sent is when it was asked.
func (s *session) fill(answer protocol.ApplyResponse, sent time.Time) error {
	kind, err := protocol.Kind(answer.M2)
	if err != nil || kind != protocol.KindM2 && kind != protocol.KindKeyUpdate {
		return fmt.Errorf("answer to M1 is of kind %d, %v: %w", kind, err, protocol.CodeServerUnreachable)
	}
	s.answer, s.expires = answer.M2, sent.Add(errorLife)
	if answer.Handle == nil {
		return nil
	}
	if s.chal, err = protocol.ChallengeOf(answer.M2); err != nil {
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
	sent := s.sentAt(m3)
	answer, err := r.client.Countersign(ctx, protocol.CountersignRequest{Handle: s.handle, M3: m3})
	if err != nil {
		return nil, err
	}
	if kind, err := protocol.Kind(answer.M4); err != nil || kind != protocol.KindM4 {
		return nil, fmt.Errorf("answer to M3 is of kind %d, %v: %w", kind, err, protocol.CodeServerUnreachable)
	}
	r.decided(ctx, s, verdict{answer: answer, sent: sent})
	return answer.M4, nil
}

// verdict is the answer to an M3, and when that M3 was first sent.
type verdict struct {
	answer protocol.CountersignResponse
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
	if d.Result != protocol.ResultApproved {
		r.log.Info("decision", "result", d.Result.String(), "transaction", d.Transaction.String(), "service", uint64(d.Service))
		r.conclude(s, Settlement{Result: d.Result.String(), Code: d.Reason, Decision: &d})
		return
	}
	r.act(ctx, s, d)
}

// undecided is an answer without a decision: a retry leaves the order open, a
// denial that S makes none for ends it, and an approval is not one.
func (r *Relay) undecided(s *session, result protocol.Result) {
	switch result {
	case protocol.ResultRetry:
		r.metrics.decisions.WithLabelValues(result.String()).Inc()
	case protocol.ResultApproved:
		r.log.Info("approved without a decision: nothing to act on")
	default:
		r.metrics.decisions.WithLabelValues(result.String()).Inc()
		reason, _ := protocol.ReasonFor(result)
		r.conclude(s, Settlement{Result: result.String(), Code: reason})
	}
}

// verify checks a decision as PROTOCOL.md §3.1 asks. One by a key that the device
// does not know yet has the trust refreshed.
func (r *Relay) verify(ctx context.Context, s *session, v verdict) (protocol.Decision, error) {
	d, err := r.check(s, v)
	if !errors.Is(err, protocol.CodeCertificate) {
		return d, err
	}
	if err := r.client.RefreshTrust(ctx); err != nil {
		r.log.Warn("refreshing trust failed", "error", err)
	}
	return r.check(s, v)
}

func (r *Relay) check(s *session, v verdict) (protocol.Decision, error) {
	trust := r.client.Trust()
	d, err := protocol.DecisionCheck{
		Root: trust.Root, KeyCerts: trust.KeyCerts(protocol.UseDecision), Now: trust.Time(uint64(time.Now().Unix())),
		Device: r.client.Identity().ID, Nonce: s.nonce, Challenges: []protocol.Challenge{s.chal},
		Services: s.ticket.order.Services, Amount: s.ticket.order.Amount, Floor: r.config.Floor, Elapsed: time.Since(v.sent),
	}.Verify(v.answer.Decision)
	if err != nil {
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
