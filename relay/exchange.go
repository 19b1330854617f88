package relay

import (
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

const (
	busyPause = 2 * time.Second // after which a phone that was turned away may try again
	errorLife = time.Minute     // how long an answer without a handle is repeated
	maxTTL    = 3600            // limit of the life of a challenge, in seconds
)

// answerM1 applies an M1 once. The same bytes on any link get the same answer. A device whose hook
// cannot be started takes none: it could not act on the approval.
func (r *Relay) answerM1(p *phone, x *exchange) ([]byte, error) {
	if err := r.config.Hook.Check(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	c, isNew, err := r.challengeLocked(x)
	var todo []effect
	if isNew {
		todo = c.authorization.moveLocked(x, event{kind: taken})
	}
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if isNew {
		r.perform(x, c.authorization, todo)
		if c.err = x.err; c.err != nil { // the phone may try again
			r.mu.Lock()
			r.forgetLocked(c)
			r.mu.Unlock()
		}
		close(c.ready)
	}
	if err := c.await(x.ctx); err != nil {
		return nil, err
	}
	if c.handle != nil {
		p.challenge = c
	}
	return c.answer, nil
}

// answerM3 forwards an M3 even if it was forwarded before: the appliance recognises repeats.
// [protocol.CodeExpired] without a live challenge.
func (r *Relay) answerM3(p *phone, x *exchange) ([]byte, error) {
	r.mu.Lock()
	c := r.liveLocked(p.challenge, x.frame)
	if c == nil {
		r.mu.Unlock()
		return nil, protocol.CodeExpired
	}
	a := c.authorization
	x.challenge, x.sent = c, c.sentAtLocked(x.frame)
	todo := a.moveLocked(x, event{kind: countersigned})
	r.mu.Unlock()
	r.perform(x, a, todo)
	r.step(x, a, event{kind: answered})
	return x.reply, x.err
}

// next returns the progress after an event and the effects to carry out, in order. It is
// pure. An event that does not fit the state changes nothing.
func (p progress) next(e event) (progress, []effect) {
	switch e.kind {
	case taken:
		if p.state == offered {
			p.state = applied
		}
		return p, effects(result{}, apply)
	case countersigned:
		p.calls++
		if p.state == applied && e.isOwner {
			p.state = countersigning
		}
		return p, effects(result{}, forward) // in every state: the appliance recognises repeats
	case decided:
		return p, effects(result{}, verify)
	case concluded, denied, pended, repeated:
		return p.notApproved(e)
	case approved, begun, known, unjournalled, acted:
		return p.towardsAct(e)
	case answered:
		p.calls--
		if p.state == countersigning && p.calls == 0 {
			p.state = applied
		}
		p, all := p.expired()
		return p, append(effects(result{}, reply), all...)
	}
	return p.withoutAnswer(e)
}

func effects(r result, kinds ...effectKind) []effect {
	all := make([]effect, len(kinds))
	for i, k := range kinds {
		all[i] = effect{k, r}
	}
	return all
}

// isTaken reports whether a phone has the order and no decision has come yet.
func (p progress) isTaken() bool { return p.state == applied || p.state == countersigning }

// isOffered reports whether a second approver can be asked.
func (p progress) isOffered() bool {
	return p.state == waiting && !p.isOver && !p.isGone && !p.isClosed && p.pending.handle != nil
}

// notApproved handles an answer to M3 after which the device does not act.
func (p progress) notApproved(e event) (progress, []effect) {
	switch {
	case e.kind == concluded && e.isOwner && p.isTaken():
		p.state, p.isOver = settled, false
		return p, effects(e.result, inform, record)
	case e.kind == denied && p.state == waiting:
		p.state, p.isSpent, p.isOver = settled, p.isOnce, false
		return p, effects(e.result, inform, record)
	case e.kind == repeated:
		if p.isOffered() && p.pending == e.pending {
			return p, effects(result{}, relist)
		}
		return p, nil
	case e.kind == pended && p.state != acting && !p.isSpent:
		p.state, p.pending, p.isOver, p.isClosed = waiting, e.pending, false, false
		return p, effects(e.result, await, inform, record)
	}
	return p, effects(e.result, record)
}

// towardsAct handles an approval: the journal first, then the act, once for an order that
// a program placed. An order that is settled but not spent can still be acted on: its first
// decision did not verify, and the phone repeats M3.
func (p progress) towardsAct(e event) (progress, []effect) {
	switch {
	case e.kind == approved:
		return p, effects(e.result, begin)
	case e.kind == known:
		return p, effects(e.result, skip)
	case e.kind == unjournalled && p.state == acting:
		return p, effects(e.result, stop) // the act under way has a result of its own
	case e.kind == unjournalled:
		p.state = settled
		return p, effects(e.result, inform, stop)
	case e.kind == begun && p.isSpent:
		return p, effects(e.result, decline, finish, record)
	case e.kind == begun:
		p.state, p.isSpent, p.isOver = acting, p.isOnce, false
		return p, effects(e.result, act)
	case p.state == acting:
		p.state = settled
		return p, effects(e.result, finish, inform, record)
	}
	return p, effects(e.result, finish, record)
}

// expired settles an authorization whose time has ended, unless an answer is outstanding.
func (p progress) expired() (progress, []effect) {
	if !p.isOver || p.calls != 0 || !p.isTaken() && p.state != waiting {
		return p, nil
	}
	return p.expire()
}

func (p progress) expire() (progress, []effect) {
	p.state, p.isSpent, p.isOver = settled, p.isOnce, false
	return p, effects(result{Result: resultExpired, Code: protocol.CodeExpired}, inform)
}

// withoutAnswer handles what happens between answers of the appliance.
func (p progress) withoutAnswer(e event) (progress, []effect) {
	switch {
	case e.kind == returned && e.isOwner && p.isTaken():
		p.state, p.isOver = offered, false
		if p.isGone {
			p.state = settled
		}
	case e.kind == challengeEnded && e.isOwner && p.isTaken(),
		e.kind == waitEnded && p.state == waiting && p.pending == e.pending:
		p.isOver = true
		return p.expired()
	case e.kind == withdrawn && p.state == offered:
		return p.expire()
	case e.kind == superseded:
		p.isClosed = p.isClosed || p.state == waiting
	case e.kind == abandoned:
		p.isGone = true
		if p.state == offered {
			p.state = settled
		}
	}
	return p, nil
}

// step applies an event to an authorization and carries out the effects. x is nil for an
// event without a frame.
func (r *Relay) step(x *exchange, a *authorization, e event) {
	r.mu.Lock()
	todo := a.moveLocked(x, e)
	r.mu.Unlock()
	r.perform(x, a, todo)
}

func (a *authorization) moveLocked(x *exchange, e event) (all []effect) {
	e.isOwner = x != nil && a.owner == x.challenge
	a.progress, all = a.next(e)
	return all
}

// perform carries out effects. The events that follow from them are applied before it returns,
// except the end of a hook that takes longer than ActWait.
func (r *Relay) perform(x *exchange, a *authorization, todo []effect) {
	for _, f := range todo {
		switch f.kind {
		case apply:
			r.forwardApply(x)
		case forward:
			r.forward(x)
		case verify:
			r.decide(x)
		case begin:
			r.begin(x, a, f.result)
		case act:
			r.act(x, a, f.result)
		case skip:
			r.log.Info("not acting again", "transaction", f.result.Decision.Transaction.String())
			r.metrics.acts.WithLabelValues(actRepeated).Inc()
		case decline:
			r.log.Warn("not acting: the order was acted on, or is over", f.result.logFields()...)
			r.metrics.acts.WithLabelValues(actFailed).Inc()
		case finish:
			r.finish(f.result)
		case await:
			r.await(a, f.result)
		case relist:
			r.relist(a)
		case inform:
			r.inform(a, f.result)
		case record:
			r.status.update(f.result.last())
		case reply:
			x.reply = x.answer.M4
		case stop:
			r.fail(x.fatal)
		}
	}
}

// forwardApply has the appliance answer x's M1, whose order goes to another phone unless this
// one gets a challenge.
func (r *Relay) forwardApply(x *exchange) {
	c := x.challenge
	x.err = r.fill(x)
	if kind, err := message.Kind(c.answer); x.err == nil && err == nil && kind == message.KindM2 && c.handle == nil {
		x.err = c.lack // if there is no order: the phone wanted more than a status or a dry run
	}
	if x.err != nil || c.handle == nil {
		r.step(x, c.authorization, event{kind: returned})
		return
	}
	time.AfterFunc(time.Until(c.expires), func() { r.step(x, c.authorization, event{kind: challengeEnded}) })
}

// fill asks the appliance for a challenge and stores its answer.
func (r *Relay) fill(x *exchange) error {
	c := x.challenge
	if _, err := rand.Read(c.nonce[:]); err != nil {
		return fmt.Errorf("making a nonce: %w", err)
	}
	c.root = r.client.Trust().Root.RootID()
	request := deviceapi.ApplyRequest{
		M1: x.frame, Order: withServices(c.authorization.order, c.second != nil), Link: x.link, Floor: r.config.Floor,
		Nonce: c.nonce, Strict: r.config.Strict,
	}
	if c.second != nil {
		request.Handle = c.second.handle
	}
	sent := time.Now()
	answer, err := r.client.Apply(x.ctx, request)
	if err != nil {
		return err
	}
	if err := wantKind("M1", answer.M2, message.KindM2, message.KindKeyUpdate); err != nil {
		return err
	}
	c.answer, c.expires = answer.M2, sent.Add(errorLife)
	if answer.Handle == nil {
		return nil
	}
	if c.chal, err = message.ChallengeOf(answer.M2); err != nil {
		return fmt.Errorf("answer to M1 with a handle: %v: %w", err, protocol.CodeServerUnreachable)
	}
	c.handle = answer.Handle
	c.expires = sent.Add(time.Duration(min(answer.TTL, maxTTL)) * time.Second)
	return nil
}

// forward sends M3 to the appliance. The phone gets its M4 regardless of what the
// device does with the answer.
func (r *Relay) forward(x *exchange) {
	request := deviceapi.CountersignRequest{Handle: x.challenge.handle, M3: x.frame}
	answer, err := r.client.Countersign(x.ctx, request)
	if err == nil {
		err = wantKind("M3", answer.M4, message.KindM4)
	}
	if err != nil {
		x.err = err
		return
	}
	x.answer = answer
	if answer.Decision != nil {
		r.step(x, x.challenge.authorization, event{kind: decided})
		return
	}
	r.undecided(x, answer.Result)
}

// undecided handles an answer without a decision. A retry changes nothing. A denial ends the
// order, but not one that waits for a second approver: another one may come. An approval is
// one of a status or a dry run, so the order goes to the next phone.
func (r *Relay) undecided(x *exchange, answer protocol.Result) {
	a := x.challenge.authorization
	switch answer {
	case protocol.ResultRetry:
		r.metrics.decisions.WithLabelValues(answer.String()).Inc()
	case protocol.ResultApproved, protocol.ResultPending:
		r.log.Info("nothing to act on: no decision", "result", answer.String(), "code", uint8(protocol.CodeFormat))
		r.metrics.decisions.WithLabelValues(resultNone).Inc()
		if answer == protocol.ResultApproved {
			r.step(x, a, event{kind: returned})
		}
	default:
		r.metrics.decisions.WithLabelValues(answer.String()).Inc()
		reason, _ := receipt.ReasonFor(answer)
		r.step(x, a, event{kind: concluded, result: result{Result: answer.String(), Code: reason}})
	}
}

// decide verifies a decision and applies it to the authorization that it is for: the one
// that the phone took up, or the one that waits for this second approver.
func (r *Relay) decide(x *exchange) {
	c := x.challenge
	d, err := r.verify(x)
	if err != nil {
		code, _ := protocol.CodeOf(err)
		r.log.Error("decision refused", "code", uint8(code), "error", err)
		r.metrics.decisions.WithLabelValues(resultRefused).Inc()
		r.step(x, c.authorization, event{kind: concluded, result: result{Result: resultRefused, Code: code}})
		return
	}
	r.metrics.decisions.WithLabelValues(d.Result.String()).Inc()
	a, res := c.authorization, result{Result: d.Result.String(), Code: d.Reason, Decision: &d}
	e := event{kind: concluded, result: res}
	if second := c.secondFor(d); second != nil {
		a, e.kind = second.authorization, denied
	}
	switch d.Result {
	case protocol.ResultApproved:
		e.kind, e.result.Code = approved, 0
	case protocol.ResultPending:
		e.kind, e.pending = r.pend(x, d)
	default:
		r.log.Info("decision", res.logFields("result", d.Result.String())...)
	}
	r.step(x, a, e)
}

// begin makes it durable that the act begins. Without the journal the device does not act.
func (r *Relay) begin(x *exchange, a *authorization, res result) {
	d := res.Decision
	isFirst, err := r.journal.Begin(d.Transaction, d.Service, d.Amount)
	e := event{kind: known, result: res}
	switch {
	case err != nil:
		r.log.Error("not acting: the journal cannot be written", "transaction", d.Transaction.String(), "error", err)
		x.fatal = err
		e.kind, e.result.Result = unjournalled, resultFailed
	case isFirst:
		e.kind = begun
	}
	r.step(x, a, e)
}

// finish makes the outcome of an approval durable and has it reported.
func (r *Relay) finish(res result) {
	id := res.Decision.Transaction
	if err := r.journal.Finish(id, res.Performed); err != nil {
		r.log.Error("outcome known, but the journal cannot be written",
			"transaction", id.String(), "performed", res.Performed, "error", err)
		r.fail(err)
	}
	select {
	case r.unsettled <- struct{}{}:
	default:
	}
}

// inform sends a result to the program that placed the order. The first final one counts.
func (r *Relay) inform(a *authorization, res result) {
	r.mu.Lock() // so that pending results leave room for a final one
	defer r.mu.Unlock()
	if !res.isFinal() && len(a.results) > 0 {
		return
	}
	select {
	case a.results <- res:
	default:
	}
}

func wantKind(to string, answer []byte, kinds ...byte) error {
	kind, err := message.Kind(answer)
	if err == nil && slices.Contains(kinds, kind) {
		return nil
	}
	return fmt.Errorf("answer to %s is of kind %d, %v: %w", to, kind, err, protocol.CodeServerUnreachable)
}
