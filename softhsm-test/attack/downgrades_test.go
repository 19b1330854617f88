package attack

import (
	"context"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
)

// downgrades asks for less than the policy does, or gives less than was asked for.
func downgrades(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "down-alice", "approver")
	plain := a.Plain(ctx, "down-plain")
	p := pair{a, alice, plain}
	for _, f := range []func(context.Context){p.askedLevels, p.refusedApplies, p.missingPassword, p.missingUV, p.strictness, p.lessThanOrdered, p.manySmall} {
		f(ctx)
	}
}

// changed is an application with one change.
func changed(ask Ask, change func(*Ask)) Ask {
	change(&ask)
	return ask
}

// askedLevels: neither phone nor device nor link class lowers the policy's level.
func (p pair) askedLevels(ctx context.Context) {
	p.Leaves(ctx, "levels asked for", Nothing, func() {
		for _, c := range []struct {
			what    string
			ask     Ask
			level   protocol.Level
			factors protocol.Factors
		}{
			{"a door", p.AskFor(p.alice, Door, 1), 1, 1},
			{"a door at level 3", p.AskFor(p.alice, Door, 3), 3, 7},
			{"a door, device floor 2", changed(p.AskFor(p.alice, Door, 1), func(k *Ask) { k.Req.Floor = 2 }), 2, 3},
			{"a payment of 49.99 at level 1", p.Pay(p.alice, 4999), 1, 1},
			{"a payment of 50.00 at level 1", p.Pay(p.alice, 5000), 2, 3},
			{"the same, device floor 1", changed(p.Pay(p.alice, 5000), func(k *Ask) { k.Req.Floor = 1 }), 2, 3},
			{"a payment of 10,000.00 at level 1", p.Pay(p.alice, 1_000_000), 4, 15},
			{"the vault at level 1", p.AskFor(p.alice, Vault, 1), 3, 7},
			{"the vault by QR", changed(p.AskFor(p.alice, Vault, 1), func(k *Ask) { k.Req.Link = deviceapi.LinkQR }), 3, 7},
			{"the vault by sound", changed(p.AskFor(p.alice, Vault, 1), func(k *Ask) { k.Req.Link = deviceapi.LinkSound }), 3, 7},
			{"the vault by NFC", changed(p.AskFor(p.alice, Vault, 1), func(k *Ask) { k.Req.Link = deviceapi.LinkNFC }), 3, 7},
			{"the vault by BLE", changed(p.AskFor(p.alice, Vault, 1), func(k *Ask) { k.Req.Link = deviceapi.LinkBLE }), 3, 7},
			{"the vault, strict", changed(p.AskFor(p.alice, Vault, 1), func(k *Ask) { k.Req.Strict = true }), 3, 23},
		} {
			s := c.ask.Apply(ctx)
			s.Applied.What = c.what
			p.Expect(s.Applied, Challenged)
			p.Check(s.P2.Level == c.level && s.P2.Factors == c.factors && s.Level == c.level,
				"%s: level %d, factors %d, the device is told %d; wanted %d and %d", c.what, s.P2.Level, uint8(s.P2.Factors), s.Level, c.level, uint8(c.factors))
		}
	})
}

// refusedApplies: what gets no challenge at all.
func (p pair) refusedApplies(ctx context.Context) {
	pay := func(change func(*Ask)) Ask { return changed(p.Pay(p.alice, 6000), change) }
	door := func(change func(*Ask)) Ask { return changed(p.AskFor(p.alice, Door, 1), change) }
	malformed := HTTP(400, protocol.CodeFormat)
	p.Leaves(ctx, "applies that are refused", Nothing, func() {
		for _, c := range []struct {
			what string
			ask  Ask
			want Verdict
		}{
			{"level 0", p.AskFor(p.alice, Vault, 0), InM2(protocol.CodeLevel)},
			{"level 5", p.AskFor(p.alice, Vault, 5), InM2(protocol.CodeLevel)},
			{"level 255", p.AskFor(p.alice, Vault, 255), InM2(protocol.CodeLevel)},
			{"floor 5", door(func(k *Ask) { k.Req.Floor = 5 }), malformed},
			{"link class 6", door(func(k *Ask) { k.Req.Link = 6 }), malformed},
			{"no link class", door(func(k *Ask) { k.Req.Link = 0 }), malformed},
			{"a door for the vault", p.wrongService(Door, Vault), InM2(protocol.CodeService)},
			{"a door for a payment", p.wrongService(Door, Payment), InM2(protocol.CodeService)},
			{"a service that is none", p.wrongService(4711, 4711), InM2(protocol.CodeService)},
			{"a payment without amount", pay(func(k *Ask) { k.Req.Order.Amount = nil }), InM2(protocol.CodeAmountMissing)},
			{"a door with an amount", door(func(k *Ask) { k.Req.Order.Amount = Euros(1) }), InM2(protocol.CodeAmountNotAllowed)},
			{"other currency", pay(func(k *Ask) { k.Req.Order.Amount.Currency = "JPY" }), InM2(protocol.CodeAmountNotAllowed)},
			{"less than ordered", pay(func(k *Ask) { k.P1.Proposal = &message.Proposal{Amount: Euros(1)} }), InM2(protocol.CodeAmountDiffers)},
			{"other text than ordered", pay(func(k *Ask) { k.P1.Proposal = &message.Proposal{Text: "Tea"} }), InM2(protocol.CodeTextDiffers)},
			{"full receipt by sound", door(func(k *Ask) {
				k.P1.Capabilities, k.Req.Link = message.CapabilityFullReceipt, deviceapi.LinkSound
			}), InM2(protocol.CodeFasterLink)},
			{"two scripts in a text", pay(func(k *Ask) { k.Req.Order.Text = "pаypal" }), malformed},
		} {
			s := c.ask.Apply(ctx)
			s.Applied.What = c.what
			p.Expect(s.Applied, c.want)
			p.Check(s.Handle == nil, "%s: refused with a handle", c.what)
		}
	})
}

// wrongService: the phone asks for one, the device orders another.
func (p pair) wrongService(asked, ordered protocol.Service) Ask {
	return changed(p.AskFor(p.alice, asked, 1), func(k *Ask) { k.Req.Order.Services = []protocol.Service{ordered} })
}

// answered applies and countersigns with one dishonest change.
func (p pair) answered(ctx context.Context, a answer) {
	s := a.ask.Must(ctx)
	p.Play(ctx, Move{What: a.what, On: s, Sign: a.sign(s), Want: a.want})
}

// answer is an application with the countersignature that follows.
type answer struct {
	what string
	ask  Ask
	sign func(*Session) Sign
	want Verdict
}

func noProof(s *Session) Sign {
	sign := s.Honest()
	sign.Proof = nil
	return sign
}

// slot is an honest signature but for its slot and key.
func slot(number uint64, key Key) func(*Session) Sign {
	return func(s *Session) Sign {
		sign := s.Honest()
		sign.Slot, sign.Key = number, key
		return sign
	}
}

// missingPassword: a challenge that asks for one is not approved without.
func (p pair) missingPassword(ctx context.Context) {
	spent := Spent.And(Spent, Spent, Spent)
	p.Leaves(ctx, "no password where one is asked for", spent, func() {
		for _, c := range []struct {
			what string
			ask  Ask
			code protocol.Code
		}{
			{"level 2", p.Pay(p.alice, 5000), protocol.CodePassword},
			{"level 4", p.Pay(p.alice, 1_000_000), protocol.CodePassword},
			{"level 3", p.AskFor(p.alice, Vault, 1), protocol.CodePassword},
			{"level 2, enrolled without any", p.Pay(p.bob, 5000), protocol.CodePolicy},
		} {
			p.answered(ctx, answer{c.what + ", no proof", c.ask, noProof, Denied(c.code)})
		}
	})
}

// missingUV: level 3 wants the UV key itself.
func (p pair) missingUV(ctx context.Context) {
	uv, key := *p.alice.UV, p.alice.Key
	vault := func(phone *Phone) Ask { return p.AskFor(phone, Vault, 1) }
	p.Leaves(ctx, "level 3 with signatures that do not fit", Nothing, func() {
		for _, c := range []struct {
			what  string
			phone *Phone
			sign  func(*Session) Sign
			code  protocol.Code
		}{
			{"slot 3 by the signing key", p.alice, slot(protocol.SlotUV, key), protocol.CodeSignature},
			{"slot 1 by the UV key", p.alice, slot(protocol.SlotSigning, uv), protocol.CodeSignature},
			{"slot 3 by a foreign key", p.alice, slot(protocol.SlotUV, NewKey()), protocol.CodeSignature},
			{"slot 3 of a phone without UV key", p.bob, slot(protocol.SlotUV, p.bob.Key), protocol.CodeSignature},
			{"slot 3 by another's UV key", p.bob, slot(protocol.SlotUV, uv), protocol.CodeSignature},
		} {
			p.answered(ctx, answer{c.what, vault(c.phone), c.sign, Denied(c.code)})
		}
	})
	p.Leaves(ctx, "level 3 by slot 1", Spent.And(Tried), func() {
		p.answered(ctx, answer{"level 3 by slot 1, password right", vault(p.alice), slot(protocol.SlotSigning, key), Denied(protocol.CodePolicy)})
	})
}

// strictness: the flag is dropped or added on the way from device to appliance.
func (p pair) strictness(ctx context.Context) {
	dropped := p.AskFor(p.alice, Door, 1).Must(ctx)
	added := changed(p.AskFor(p.alice, Door, 1), func(k *Ask) { k.Req.Strict = true }).Must(ctx)
	p.Check(added.P2.Factors.Has(protocol.FactorStrict) && !dropped.P2.Factors.Has(protocol.FactorStrict), "the phone is not told of strictness: %s, %s", added.P2.Factors, dropped.P2.Factors)
	for _, c := range []struct {
		what string
		s    *Session
		code protocol.Code
	}{{"strict flag dropped", dropped, protocol.CodeFormat}, {"strict", added, 0}} {
		_, r := p.Approve(ctx, c.s, Approved)
		check := c.s.Check()
		check.Strict = true
		_, err := check.Verify(r.Res.Decision)
		p.Code(c.what, err, c.code)
	}
}

// lessThanOrdered: a device between till and appliance orders less; the till sees it.
func (p pair) lessThanOrdered(ctx context.Context) {
	s := p.Pay(p.alice, 4999).Must(ctx)
	_, r := p.Approve(ctx, s, Approved)
	check := s.Check()
	check.Amount = Euros(6000)
	_, err := check.Verify(r.Res.Decision)
	p.Code("a decision for 49.99 where 60.00 was ordered", err, protocol.CodePolicy)
	check.Amount, check.Floor = Euros(4999), 2
	_, err = check.Verify(r.Res.Decision)
	p.Code("a decision of level 1 at floor 2", err, protocol.CodeLevel)
	for _, want := range []struct {
		what string
		e    message.Expectation
		code protocol.Code
	}{
		{"the phone's own floor", message.Expectation{Service: Payment, Floor: func(protocol.Service) protocol.Level { return 2 }}, protocol.CodeLevel},
		{"the level it asked for", message.Expectation{Service: Payment, Requested: 2}, protocol.CodeLevel},
		{"the amount it proposed", message.Expectation{Service: Payment, Amount: Euros(1)}, protocol.CodePolicy},
		{"the text it proposed", message.Expectation{Service: Payment, Text: "Tea"}, protocol.CodePolicy},
		{"a co-approval that names no first statement", message.Expectation{Service: protocol.ServiceCoApproval}, protocol.CodeFormat},
		{"what it wants", message.Expectation{Service: Payment, Requested: 1, Amount: Euros(4999), Text: "Coffee and croissants"}, 0},
	} {
		p.Code("the phone against "+want.what, s.P2.Acceptable(want.e), want.code)
	}
}

// manySmall: small payments do not pass the bound of the policy by their number, at once, or under
// another's id.
func (p pair) manySmall(ctx context.Context) {
	small := p.Equipped(ctx, "down-small")
	var early []*Session
	for range 5 {
		early = append(early, p.Pay(small, 4999).Must(ctx))
	}
	charged := Spent.And(Charged)
	p.Leaves(ctx, "five payments of 49.99 that were applied for at once", charged.And(charged, charged, Spent, Spent), func() {
		for n, s := range early {
			p.Check(s.P2.Level == 1, "payment %d: level %d", n+1, s.P2.Level)
			want := Approved
			if n >= 3 {
				want = Denied(protocol.CodePolicy)
			}
			p.Approve(ctx, s, want)
		}
	})
	p.Leaves(ctx, "forty more without the password", Nothing, func() {
		for range 40 {
			s := p.Pay(small, 4999).Must(ctx)
			p.Check(s.P2.Level == 2 && s.P2.Factors == 3, "level %d, factors %d", s.P2.Level, uint8(s.P2.Factors))
		}
	})
	// What the level shows to one who knows the id and plays the phone (SECURITY.md).
	stranger := p.Stranger()
	p.Leaves(ctx, "the sum of another's id", Nothing, func() {
		for _, c := range []struct {
			what  string
			id    protocol.ClientID
			cents uint64
			level protocol.Level
		}{
			{"an unknown id", stranger.ID, 4999, 1},
			{"its id, below the bound", small.ID, 2, 1},
			{"its id, at the bound", small.ID, 3, 2},
		} {
			ask := p.Pay(stranger, c.cents)
			ask.P1.Client = c.id
			s := ask.Apply(ctx)
			s.Applied.What = c.what
			p.Expect(s.Applied, Challenged)
			p.Check(s.P2.Level == c.level, "%s: level %d, want %d", c.what, s.P2.Level, c.level)
		}
	})
	p.Leaves(ctx, "a payment with the password", charged.And(Tried), func() {
		p.Approve(ctx, p.Pay(small, 4999).Must(ctx), Approved)
	})
}
