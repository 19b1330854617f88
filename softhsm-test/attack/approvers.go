package main

import (
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/softhsm-test/attack/arena"
)

// approvers attacks the second approval of level 4.
func approvers(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "first-alice", "approver")
	if err != nil {
		return err
	}
	bob, err := a.Equipped(ctx, "second-bob", "approver")
	if err != nil {
		return err
	}
	p := pair{a, alice, bob}
	for _, f := range []func(context.Context) error{p.wrongApprovers, p.weakApprovals, p.finalOnce, p.refusedBySecond, p.suspended, p.otherOrder} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// approval is the second challenge to a phone.
func (p pair) approval(ctx context.Context, w arena.Waiting, by *arena.Phone) (*arena.Session, error) {
	return p.Second(by, w.Session, w.Reply.Res.NextHandle).Must(ctx)
}

// wrongApprovers: the same client, one without the role, one whose factors are not
// enough, a stranger. The first approval goes on waiting, and its true approver ends it.
func (p pair) wrongApprovers(ctx context.Context) error {
	carol, err := p.Equipped(ctx, "second-carol")
	if err != nil {
		return err
	}
	plain, err := p.Enrol(ctx, "second-plain", p.Stranger(), "approver")
	if err != nil {
		return err
	}
	w, err := p.Wait(ctx, p.alice)
	if err != nil {
		return err
	}
	policy := arena.Denied(protocol.CodePolicy)
	for _, c := range []struct {
		what string
		by   *arena.Phone
		sign func(*arena.Session) arena.Sign
		want arena.Verdict
		left arena.Effects
	}{
		{"the same client", p.alice, (*arena.Session).Honest, policy, arena.Spent.And(arena.Tried)},
		{"a client without the role", carol, (*arena.Session).Honest, policy, arena.Spent.And(arena.Tried)},
		{"an approver without password and UV key", plain, func(s *arena.Session) arena.Sign {
			return arena.Sign{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Key: plain.Key}
		}, policy, arena.Spent},
		{"a stranger", p.Full(), (*arena.Session).Honest, arena.Denied(protocol.CodeRefused), arena.Nothing},
	} {
		s, err := p.approval(ctx, w, c.by)
		if err != nil {
			return err
		}
		err = p.Leaves(ctx, c.what, c.left, func() error {
			return p.Play(ctx, arena.Move{What: c.what, On: s, Sign: c.sign(s), Want: c.want})
		})
		if err != nil {
			return err
		}
	}
	return p.ends(ctx, w)
}

// ends: the row still waits, for bob.
func (p pair) ends(ctx context.Context, w arena.Waiting) error {
	s, err := p.approval(ctx, w, p.bob)
	if err != nil {
		return err
	}
	return p.Leaves(ctx, "the true approver", arena.Spent.And(arena.Tried, arena.Effects{"record/final": 1}), func() error {
		_, r, err := p.Approve(ctx, s, arena.Approved)
		if err != nil {
			return err
		}
		p.sameTransaction(w.Session, []arena.Reply{r}, s)
		return nil
	})
}

// weakApprovals: the right person, less than level 4 asks of each.
func (p pair) weakApprovals(ctx context.Context) error {
	w, err := p.Wait(ctx, p.alice)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what string
		sign func(*arena.Session) arena.Sign
		want arena.Verdict
		left arena.Effects
	}{
		{"second without proof", noProof, arena.Denied(protocol.CodePassword), arena.Spent},
		{"second by slot 1", slot(protocol.SlotSigning, p.bob.Key), arena.Denied(protocol.CodePolicy), arena.Spent.And(arena.Tried)},
		{"second with a bad signature", slot(protocol.SlotUV, arena.NewKey()), arena.Denied(protocol.CodeSignature), arena.Nothing},
		{"second with a wrong password", func(s *arena.Session) arena.Sign { return s.Guess(0) }, arena.Retry, arena.Refused(1).And(arena.Tried)},
	} {
		s, err := p.approval(ctx, w, p.bob)
		if err != nil {
			return err
		}
		err = p.Leaves(ctx, c.what, c.left, func() error {
			return p.Play(ctx, arena.Move{What: c.what, On: s, Sign: c.sign(s), Want: c.want})
		})
		if err != nil {
			return err
		}
	}
	for what, c := range map[string]struct {
		level protocol.Level
		want  arena.Verdict
	}{"second asks for level 1": {1, arena.Challenged}, "second asks for level 5": {5, arena.InM2(protocol.CodeLevel)}} {
		ask := p.Second(p.bob, w.Session, w.Reply.Res.NextHandle)
		ask.P1.Level = c.level
		s, err := ask.Apply(ctx)
		if err != nil {
			return err
		}
		s.Applied.What = what
		p.Expect(s.Applied, c.want)
		p.Check(c.want != arena.Challenged || s.P2.Level == 4 && s.P2.Factors == 15, "%s: level %d, factors %s", what, s.P2.Level, s.P2.Factors)
	}
	return p.ends(ctx, w)
}

// finalOnce: a row that came to its end is not moved again, and the first client's M3
// is answered as pending ever after.
func (p pair) finalOnce(ctx context.Context) error {
	w, err := p.Wait(ctx, p.alice)
	if err != nil {
		return err
	}
	late, err := p.approval(ctx, w, p.bob)
	if err != nil {
		return err
	}
	if err := p.ends(ctx, w); err != nil {
		return err
	}
	late2, err := p.approval(ctx, w, p.bob)
	if err != nil {
		return err
	}
	err = p.Leaves(ctx, "second approvals after the first", arena.Spent.And(arena.Refused(1), arena.Tried), func() error {
		return p.Play(
			ctx,
			arena.Move{What: "another challenge, spent counter", On: late, Sign: late.Honest(), Want: arena.Denied(protocol.CodeSerial)},
			arena.Move{What: "a new challenge on a row that is final", On: late2, Sign: late2.Honest(), Want: arena.Denied(protocol.CodeSerial)},
		)
	})
	if err != nil {
		return err
	}
	return p.Leaves(ctx, "the first M3 again", arena.Nothing, func() error {
		r, err := w.Send(ctx, w.M3)
		if err != nil {
			return err
		}
		p.Expect(r.Named("the first M3 again"), arena.Pending)
		check, err := w.Check()
		if err != nil {
			return err
		}
		d, err := check.Verify(r.Res.Decision)
		p.Code("the pending decision", err, 0)
		p.Check(d.Result == protocol.ResultPending, "the first client's decision has result %s", d.Result)
		return nil
	})
}

func (p pair) refusedBySecond(ctx context.Context) error {
	w, err := p.Wait(ctx, p.alice)
	if err != nil {
		return err
	}
	s, err := p.approval(ctx, w, p.bob)
	if err != nil {
		return err
	}
	left := arena.Spent.And(arena.Spent, arena.Tried, arena.Effects{"record/final": 1})
	return p.Leaves(ctx, "refused by the second", left, func() error {
		no := arena.Sign{Verdict: protocol.Refuse, Slot: protocol.SlotSigning, Key: p.bob.Key}
		if err := p.Play(ctx, arena.Move{What: "no", On: s, Sign: no, Want: arena.Denied(protocol.CodeUserRefused)}); err != nil {
			return err
		}
		after, err := p.approval(ctx, w, p.bob)
		if err != nil {
			return err
		}
		return p.Play(ctx, arena.Move{What: "yes after no", On: after, Sign: after.Honest(), Want: arena.Denied(protocol.CodeSerial)})
	})
}

// suspended: neither may be suspended when the second signs.
func (p pair) suspended(ctx context.Context) error {
	for _, c := range []struct {
		who  *arena.Phone
		want arena.Verdict
		left arena.Effects
	}{
		{p.bob, arena.Denied(protocol.CodeSuspended), arena.Spent},
		{p.alice, arena.Denied(protocol.CodeRefused), arena.Spent.And(arena.Tried, arena.Effects{"record/final": 1})},
	} {
		w, err := p.Wait(ctx, p.alice)
		if err != nil {
			return err
		}
		s, err := p.approval(ctx, w, p.bob)
		if err != nil {
			return err
		}
		if err := p.Do(ctx, "client/"+c.who.Name+"/suspend"); err != nil {
			return err
		}
		err = p.Leaves(ctx, c.who.Name+" suspended", c.left, func() error {
			return p.Play(ctx, arena.Move{What: c.who.Name + " suspended", On: s, Sign: s.Honest(), Want: c.want})
		})
		if err != nil {
			return err
		}
		if err := p.Do(ctx, "client/"+c.who.Name+"/resume"); err != nil {
			return err
		}
	}
	return nil
}

// otherOrder: the second approves what the first signed, and no order that the device
// has changed since.
func (p pair) otherOrder(ctx context.Context) error {
	w, err := p.WaitFor(ctx, p.Pay(p.alice, 1_000_000))
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what   string
		change func(*deviceapi.Order)
		want   protocol.Code
	}{
		{"another amount", func(o *deviceapi.Order) { o.Amount = arena.Euros(100) }, protocol.CodePolicy},
		{"another currency", func(o *deviceapi.Order) { o.Amount = &protocol.Amount{Minor: 1_000_000, Currency: "JPY"} }, protocol.CodePolicy},
		{"another text", func(o *deviceapi.Order) { o.Text = "Tea" }, protocol.CodePolicy},
		{"another service", func(o *deviceapi.Order) { *o = deviceapi.Order{Services: []protocol.Service{arena.Door}} }, protocol.CodeService},
	} {
		ask := p.Second(p.bob, w.Session, w.Reply.Res.NextHandle)
		c.change(&ask.Req.Order)
		s, err := ask.Apply(ctx)
		if err != nil {
			return err
		}
		s.Applied.What = "second approval, ordered by then: " + c.what
		p.Expect(s.Applied, arena.InM2(c.want))
	}
	s, err := p.approval(ctx, w, p.bob)
	if err != nil {
		return err
	}
	p.Check(*s.P2.Amount == *arena.Euros(1_000_000) && s.P2.Text == w.P2.Text && *s.P2.FirstStatement == w.Stmt.Hash() && *s.P2.FirstService == arena.Payment,
		"the second is shown %v %q", s.P2.Amount, s.P2.Text)
	_, r, err := p.Approve(ctx, s, arena.Approved)
	if err != nil {
		return fmt.Errorf("second approval: %w", err)
	}
	check, err := w.Check(s)
	if err != nil {
		return err
	}
	_, err = check.Verify(r.Res.Decision)
	p.Code("the decision of both", err, 0)
	check.Challenges = check.Challenges[1:]
	_, err = check.Verify(r.Res.Decision)
	p.Code("a second approver that was not asked for", err, protocol.CodeReplayed)
	check.Challenges = check.Challenges[:0]
	_, err = check.Verify(r.Res.Decision)
	p.Code("no challenge", err, protocol.CodeReplayed)
	return nil
}
