package main

import (
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/attack/arena"
)

// downgrades asks for less than the policy does, or gives less than was asked for.
func downgrades(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "down-alice", "approver")
	if err != nil {
		return err
	}
	plain, err := a.Plain(ctx, "down-plain")
	if err != nil {
		return err
	}
	p := pair{a, alice, plain}
	for _, f := range []func(context.Context) error{p.askedLevels, p.refusedApplies, p.missingPassword, p.missingUV, p.strictness, p.lessThanOrdered} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// changed is an application with one change.
func changed(ask arena.Ask, change func(*arena.Ask)) arena.Ask {
	change(&ask)
	return ask
}

// askedLevels: neither phone nor device nor link class lowers the policy's level.
func (p pair) askedLevels(ctx context.Context) error {
	return p.Leaves(ctx, "levels asked for", arena.Nothing, func() error {
		for _, c := range []struct {
			what    string
			ask     arena.Ask
			level   protocol.Level
			factors protocol.Factors
		}{
			{"a door", p.AskFor(p.alice, arena.Door, 1), 1, 1},
			{"a door at level 3", p.AskFor(p.alice, arena.Door, 3), 3, 7},
			{"a door, device floor 2", changed(p.AskFor(p.alice, arena.Door, 1), func(k *arena.Ask) { k.Req.Floor = 2 }), 2, 3},
			{"a payment of 49.99 at level 1", p.Pay(p.alice, 4999), 1, 1},
			{"a payment of 50.00 at level 1", p.Pay(p.alice, 5000), 2, 3},
			{"the same, device floor 1", changed(p.Pay(p.alice, 5000), func(k *arena.Ask) { k.Req.Floor = 1 }), 2, 3},
			{"a payment of 10,000.00 at level 1", p.Pay(p.alice, 1_000_000), 4, 15},
			{"the vault at level 1", p.AskFor(p.alice, arena.Vault, 1), 3, 7},
			{"the vault by QR", changed(p.AskFor(p.alice, arena.Vault, 1), func(k *arena.Ask) { k.Req.Link = deviceapi.LinkQR }), 3, 7},
			{"the vault by sound", changed(p.AskFor(p.alice, arena.Vault, 1), func(k *arena.Ask) { k.Req.Link = deviceapi.LinkSound }), 3, 7},
			{"the vault by NFC", changed(p.AskFor(p.alice, arena.Vault, 1), func(k *arena.Ask) { k.Req.Link = deviceapi.LinkNFC }), 3, 7},
			{"the vault by BLE", changed(p.AskFor(p.alice, arena.Vault, 1), func(k *arena.Ask) { k.Req.Link = deviceapi.LinkBLE }), 3, 7},
			{"the vault, strict", changed(p.AskFor(p.alice, arena.Vault, 1), func(k *arena.Ask) { k.Req.Strict = true }), 3, 23},
		} {
			s, err := c.ask.Apply(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			s.Applied.What = c.what
			p.Expect(s.Applied, arena.Challenged)
			p.Check(s.P2.Level == c.level && s.P2.Factors == c.factors && s.Level == c.level,
				"%s: level %d, factors %d, the device is told %d; wanted %d and %d", c.what, s.P2.Level, uint8(s.P2.Factors), s.Level, c.level, uint8(c.factors))
		}
		return nil
	})
}

// refusedApplies: what gets no challenge at all.
func (p pair) refusedApplies(ctx context.Context) error {
	pay := func(change func(*arena.Ask)) arena.Ask { return changed(p.Pay(p.alice, 6000), change) }
	door := func(change func(*arena.Ask)) arena.Ask { return changed(p.AskFor(p.alice, arena.Door, 1), change) }
	malformed := arena.HTTP(400, protocol.CodeFormat)
	return p.Leaves(ctx, "applies that are refused", arena.Nothing, func() error {
		for _, c := range []struct {
			what string
			ask  arena.Ask
			want arena.Verdict
		}{
			{"level 0", p.AskFor(p.alice, arena.Vault, 0), arena.InM2(protocol.CodeLevel)},
			{"level 5", p.AskFor(p.alice, arena.Vault, 5), arena.InM2(protocol.CodeLevel)},
			{"level 255", p.AskFor(p.alice, arena.Vault, 255), arena.InM2(protocol.CodeLevel)},
			{"floor 5", door(func(k *arena.Ask) { k.Req.Floor = 5 }), malformed},
			{"link class 6", door(func(k *arena.Ask) { k.Req.Link = 6 }), malformed},
			{"no link class", door(func(k *arena.Ask) { k.Req.Link = 0 }), malformed},
			{"a door for the vault", p.wrongService(arena.Door, arena.Vault), arena.InM2(protocol.CodeService)},
			{"a door for a payment", p.wrongService(arena.Door, arena.Payment), arena.InM2(protocol.CodeService)},
			{"a service that is none", p.wrongService(4711, 4711), arena.InM2(protocol.CodeService)},
			{"a payment without amount", pay(func(k *arena.Ask) { k.Req.Order.Amount = nil }), arena.InM2(protocol.CodePolicy)},
			{"a door with an amount", door(func(k *arena.Ask) { k.Req.Order.Amount = arena.Euros(1) }), arena.InM2(protocol.CodePolicy)},
			{"other currency", pay(func(k *arena.Ask) { k.Req.Order.Amount.Currency = "JPY" }), arena.InM2(protocol.CodePolicy)},
			{"less than ordered", pay(func(k *arena.Ask) { k.P1.Proposal = &message.Proposal{Amount: arena.Euros(1)} }), arena.InM2(protocol.CodePolicy)},
			{"other text than ordered", pay(func(k *arena.Ask) { k.P1.Proposal = &message.Proposal{Text: "Tea"} }), arena.InM2(protocol.CodePolicy)},
			{"full receipt by sound", door(func(k *arena.Ask) {
				k.P1.Capabilities, k.Req.Link = message.CapabilityFullReceipt, deviceapi.LinkSound
			}), arena.InM2(protocol.CodeFasterLink)},
			{"two scripts in a text", pay(func(k *arena.Ask) { k.Req.Order.Text = "pаypal" }), malformed},
		} {
			s, err := c.ask.Apply(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			s.Applied.What = c.what
			p.Expect(s.Applied, c.want)
			p.Check(s.Handle == nil, "%s: refused with a handle", c.what)
		}
		return nil
	})
}

// wrongService: the phone asks for one, the device orders another.
func (p pair) wrongService(asked, ordered protocol.Service) arena.Ask {
	return changed(p.AskFor(p.alice, asked, 1), func(k *arena.Ask) { k.Req.Order.Services = []protocol.Service{ordered} })
}

// answered applies and countersigns with a change to what is honest.
func (p pair) answered(ctx context.Context, a answer) error {
	s, err := a.ask.Must(ctx)
	if err != nil {
		return err
	}
	return p.Play(ctx, arena.Move{What: a.what, On: s, Sign: a.sign(s), Want: a.want})
}

// answer is an application with the countersignature that follows.
type answer struct {
	what string
	ask  arena.Ask
	sign func(*arena.Session) arena.Sign
	want arena.Verdict
}

func noProof(s *arena.Session) arena.Sign {
	sign := s.Honest()
	sign.Proof = nil
	return sign
}

// slot is an honest signature but for its slot and key.
func slot(number uint64, key arena.Key) func(*arena.Session) arena.Sign {
	return func(s *arena.Session) arena.Sign {
		sign := s.Honest()
		sign.Slot, sign.Key = number, key
		return sign
	}
}

// missingPassword: a challenge that asks for one is not approved without.
func (p pair) missingPassword(ctx context.Context) error {
	spent := arena.Spent.And(arena.Spent, arena.Spent, arena.Spent)
	return p.Leaves(ctx, "no password where one is asked for", spent, func() error {
		for _, c := range []struct {
			what string
			ask  arena.Ask
			code protocol.Code
		}{
			{"level 2", p.Pay(p.alice, 5000), protocol.CodePassword},
			{"level 4", p.Pay(p.alice, 1_000_000), protocol.CodePassword},
			{"level 3", p.AskFor(p.alice, arena.Vault, 1), protocol.CodePassword},
			{"level 2, enrolled without any", p.Pay(p.bob, 5000), protocol.CodePolicy},
		} {
			if err := p.answered(ctx, answer{c.what + ", no proof", c.ask, noProof, arena.Denied(c.code)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// missingUV: level 3 wants the UV key itself.
func (p pair) missingUV(ctx context.Context) error {
	uv, key := *p.alice.UV, p.alice.Key
	vault := func(phone *arena.Phone) arena.Ask { return p.AskFor(phone, arena.Vault, 1) }
	err := p.Leaves(ctx, "level 3 with signatures that do not fit", arena.Nothing, func() error {
		for _, c := range []struct {
			what  string
			phone *arena.Phone
			sign  func(*arena.Session) arena.Sign
			code  protocol.Code
		}{
			{"slot 3 by the signing key", p.alice, slot(protocol.SlotUV, key), protocol.CodeSignature},
			{"slot 1 by the UV key", p.alice, slot(protocol.SlotSigning, uv), protocol.CodeSignature},
			{"slot 3 by a foreign key", p.alice, slot(protocol.SlotUV, arena.NewKey()), protocol.CodeSignature},
			{"slot 3 of a phone without UV key", p.bob, slot(protocol.SlotUV, p.bob.Key), protocol.CodeSignature},
			{"slot 3 by another's UV key", p.bob, slot(protocol.SlotUV, uv), protocol.CodeSignature},
		} {
			if err := p.answered(ctx, answer{c.what, vault(c.phone), c.sign, arena.Denied(c.code)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.Leaves(ctx, "level 3 by slot 1", arena.Spent.And(arena.Tried), func() error {
		return p.answered(ctx, answer{"level 3 by slot 1, password right", vault(p.alice), slot(protocol.SlotSigning, key), arena.Denied(protocol.CodePolicy)})
	})
}

// strictness: the flag is dropped or added on the way from device to appliance.
func (p pair) strictness(ctx context.Context) error {
	dropped, err := p.AskFor(p.alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	added, err := changed(p.AskFor(p.alice, arena.Door, 1), func(k *arena.Ask) { k.Req.Strict = true }).Must(ctx)
	if err != nil {
		return err
	}
	p.Check(added.P2.Factors.Has(protocol.FactorStrict) && !dropped.P2.Factors.Has(protocol.FactorStrict), "the phone is not told of strictness: %s, %s", added.P2.Factors, dropped.P2.Factors)
	for _, c := range []struct {
		what string
		s    *arena.Session
		code protocol.Code
	}{{"strict flag dropped", dropped, protocol.CodeFormat}, {"strict", added, 0}} {
		_, r, err := p.Approve(ctx, c.s, arena.Approved)
		if err != nil {
			return err
		}
		check, err := c.s.Check()
		if err != nil {
			return err
		}
		check.Strict = true
		_, err = check.Verify(r.Res.Decision)
		p.Code(c.what, err, c.code)
	}
	return nil
}

// lessThanOrdered: a device between till and appliance orders less; the till sees it.
func (p pair) lessThanOrdered(ctx context.Context) error {
	s, err := p.Pay(p.alice, 4999).Must(ctx)
	if err != nil {
		return err
	}
	_, r, err := p.Approve(ctx, s, arena.Approved)
	if err != nil {
		return err
	}
	check, err := s.Check()
	if err != nil {
		return err
	}
	check.Amount = arena.Euros(6000)
	_, err = check.Verify(r.Res.Decision)
	p.Code("a decision for 49.99 where 60.00 was ordered", err, protocol.CodePolicy)
	check.Amount, check.Floor = arena.Euros(4999), 2
	_, err = check.Verify(r.Res.Decision)
	p.Code("a decision of level 1 at floor 2", err, protocol.CodeLevel)
	for _, want := range []struct {
		what string
		e    message.Expectation
		code protocol.Code
	}{
		{"the phone's own floor", message.Expectation{Service: arena.Payment, Floor: func(protocol.Service) protocol.Level { return 2 }}, protocol.CodeLevel},
		{"the level it asked for", message.Expectation{Service: arena.Payment, Requested: 2}, protocol.CodeLevel},
		{"the amount it proposed", message.Expectation{Service: arena.Payment, Amount: arena.Euros(1)}, protocol.CodePolicy},
		{"the text it proposed", message.Expectation{Service: arena.Payment, Text: "Tea"}, protocol.CodePolicy},
		{"a co-approval that names no first statement", message.Expectation{Service: protocol.ServiceCoApproval}, protocol.CodeFormat},
		{"what it wants", message.Expectation{Service: arena.Payment, Requested: 1, Amount: arena.Euros(4999), Text: "Coffee and croissants"}, 0},
	} {
		p.Code("the phone against "+want.what, s.P2.Acceptable(want.e), want.code)
	}
	return nil
}
