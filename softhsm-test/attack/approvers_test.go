package attack

import (
	"context"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// approvers attacks the second approval of level 4.
func approvers(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "first-alice", "approver")
	bob := a.Equipped(ctx, "second-bob", "approver")
	p := pair{a, alice, bob}
	for _, f := range []func(context.Context){p.wrongApprovers, p.weakApprovals, p.finalOnce, p.refusedBySecond, p.suspended, p.otherOrder} {
		f(ctx)
	}
}

// approval is the second challenge to a phone.
func (p pair) approval(ctx context.Context, w Waiting, by *Phone) *Session {
	return p.Second(by, w.Session, w.Reply.Res.NextHandle).Must(ctx)
}

// wrongApprovers: the same client, one without the role, one with too few factors, a stranger. The
// first approval still waits, and the right approver settles it.
func (p pair) wrongApprovers(ctx context.Context) {
	carol := p.Equipped(ctx, "second-carol")
	plain := p.Enrol(ctx, "second-plain", p.Stranger(), "approver")
	w := p.Wait(ctx, p.alice)
	policy := Denied(protocol.CodePolicy)
	for _, c := range []struct {
		what string
		by   *Phone
		sign func(*Session) Sign
		want Verdict
		left Effects
	}{
		{"the same client", p.alice, (*Session).Honest, Denied(protocol.CodeOwnApproval), Spent.And(Tried)},
		{"a client without the role", carol, (*Session).Honest, policy, Spent.And(Tried)},
		{"an approver without password and UV key", plain, func(s *Session) Sign {
			return Sign{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Key: plain.Key}
		}, policy, Spent},
		{"a stranger", p.Full(), (*Session).Honest, Denied(protocol.CodeRefused), Nothing},
	} {
		s := p.approval(ctx, w, c.by)
		p.Leaves(ctx, c.what, c.left, func() {
			p.Play(ctx, Move{What: c.what, On: s, Sign: c.sign(s), Want: c.want})
		})
	}
	p.ends(ctx, w)
}

// ends: the row still waits, for bob.
func (p pair) ends(ctx context.Context, w Waiting) {
	s := p.approval(ctx, w, p.bob)
	p.Leaves(ctx, "the true approver", Spent.And(Tried, Effects{"record/final": 1}), func() {
		_, r := p.Approve(ctx, s, Approved)
		p.sameTransaction(w.Session, []Reply{r}, s)
	})
}

// weakApprovals: the right person, less than level 4 asks of each.
func (p pair) weakApprovals(ctx context.Context) {
	w := p.Wait(ctx, p.alice)
	for _, c := range []struct {
		what string
		sign func(*Session) Sign
		want Verdict
		left Effects
	}{
		{"second without proof", noProof, Denied(protocol.CodePassword), Spent},
		{"second by slot 1", slot(protocol.SlotSigning, p.bob.Key), Denied(protocol.CodePolicy), Spent.And(Tried)},
		{"second with a bad signature", slot(protocol.SlotUV, NewKey()), Denied(protocol.CodeSignature), Nothing},
		{"second with a wrong password", func(s *Session) Sign { return s.Guess(0) }, Retry, Refused(1).And(Tried)},
	} {
		s := p.approval(ctx, w, p.bob)
		p.Leaves(ctx, c.what, c.left, func() {
			p.Play(ctx, Move{What: c.what, On: s, Sign: c.sign(s), Want: c.want})
		})
	}
	for what, c := range map[string]struct {
		level protocol.Level
		want  Verdict
	}{"second asks for level 1": {1, Challenged}, "second asks for level 5": {5, InM2(protocol.CodeLevel)}} {
		ask := p.Second(p.bob, w.Session, w.Reply.Res.NextHandle)
		ask.P1.Level = c.level
		s := ask.Apply(ctx)
		s.Applied.What = what
		p.Expect(s.Applied, c.want)
		p.Check(c.want != Challenged || s.P2.Level == 4 && s.P2.Factors == 15, "%s: level %d, factors %s", what, s.P2.Level, s.P2.Factors)
	}
	p.ends(ctx, w)
}

// finalOnce: a row that came to its end is not moved again, and the first client's M3
// is answered as pending ever after.
func (p pair) finalOnce(ctx context.Context) {
	w := p.Wait(ctx, p.alice)
	late := p.approval(ctx, w, p.bob)
	p.ends(ctx, w)
	late2 := p.approval(ctx, w, p.bob)
	p.Leaves(ctx, "second approvals after the first", Spent.And(Refused(1), Tried), func() {
		p.Play(
			ctx,
			Move{What: "another challenge, spent counter", On: late, Sign: late.Honest(), Want: Denied(protocol.CodeSerial)},
			Move{What: "a new challenge on a row that is final", On: late2, Sign: late2.Honest(), Want: Denied(protocol.CodeSerial)},
		)
	})
	p.Leaves(ctx, "the first M3 again", Nothing, func() {
		r := w.Send(ctx, w.M3)
		p.Expect(r.Named("the first M3 again"), Pending)
		check := w.Check()
		d, err := check.Verify(r.Res.Decision)
		p.Code("the pending decision", err, 0)
		p.Check(d.Result == protocol.ResultPending, "the first client's decision has result %s", d.Result)
	})
}

func (p pair) refusedBySecond(ctx context.Context) {
	w := p.Wait(ctx, p.alice)
	s := p.approval(ctx, w, p.bob)
	left := Spent.And(Spent, Tried, Effects{"record/final": 1})
	p.Leaves(ctx, "refused by the second", left, func() {
		no := Sign{Verdict: protocol.Refuse, Slot: protocol.SlotSigning, Key: p.bob.Key}
		p.Play(ctx, Move{What: "no", On: s, Sign: no, Want: Denied(protocol.CodeUserRefused)})
		after := p.approval(ctx, w, p.bob)
		p.Play(ctx, Move{What: "yes after no", On: after, Sign: after.Honest(), Want: Denied(protocol.CodeSerial)})
	})
}

// suspended: neither may be suspended when the second signs.
func (p pair) suspended(ctx context.Context) {
	for _, c := range []struct {
		who  *Phone
		want Verdict
		left Effects
	}{
		{p.bob, Denied(protocol.CodeSuspended), Spent},
		{p.alice, Denied(protocol.CodeRefused), Spent.And(Tried, Effects{"record/final": 1})},
	} {
		w := p.Wait(ctx, p.alice)
		s := p.approval(ctx, w, p.bob)
		p.Do(ctx, "client/"+c.who.Name+"/suspend")
		p.Leaves(ctx, c.who.Name+" suspended", c.left, func() {
			p.Play(ctx, Move{What: c.who.Name + " suspended", On: s, Sign: s.Honest(), Want: c.want})
		})
		p.Do(ctx, "client/"+c.who.Name+"/resume")
	}
}

// otherOrder: the second approves what the first signed, and no order that the device
// has changed since.
func (p pair) otherOrder(ctx context.Context) {
	w := p.WaitFor(ctx, p.Pay(p.alice, 1_000_000))
	for _, c := range []struct {
		what   string
		change func(*deviceapi.Order)
		want   protocol.Code
	}{
		{"another amount", func(o *deviceapi.Order) { o.Amount = Euros(100) }, protocol.CodeAmountDiffers},
		{"another currency", func(o *deviceapi.Order) { o.Amount = &protocol.Amount{Minor: 1_000_000, Currency: "JPY"} }, protocol.CodeAmountDiffers},
		{"another text", func(o *deviceapi.Order) { o.Text = "Tea" }, protocol.CodeTextDiffers},
		{"another service", func(o *deviceapi.Order) { *o = deviceapi.Order{Services: []protocol.Service{Door}} }, protocol.CodeService},
	} {
		ask := p.Second(p.bob, w.Session, w.Reply.Res.NextHandle)
		c.change(&ask.Req.Order)
		s := ask.Apply(ctx)
		s.Applied.What = "second approval, ordered by then: " + c.what
		p.Expect(s.Applied, InM2(c.want))
	}
	s := p.approval(ctx, w, p.bob)
	p.Check(*s.P2.Amount == *Euros(1_000_000) && s.P2.Text == w.P2.Text && *s.P2.FirstStatement == w.Stmt.Hash() && *s.P2.FirstService == Payment,
		"the second is shown %v %q", s.P2.Amount, s.P2.Text)
	_, r := p.Approve(ctx, s, Approved)
	check := w.Check(s)
	_, err := check.Verify(r.Res.Decision)
	p.Code("the decision of both", err, 0)
	check.Challenges = check.Challenges[1:]
	_, err = check.Verify(r.Res.Decision)
	p.Code("a second approver that was not asked for", err, protocol.CodeReplayed)
	check.Challenges = check.Challenges[:0]
	_, err = check.Verify(r.Res.Decision)
	p.Code("no challenge", err, protocol.CodeReplayed)
}
