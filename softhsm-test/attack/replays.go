package main

import (
	"bytes"
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/rig/device"
)

// replays sends again, doubled, at once and in another order.
func replays(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "replay-alice", "approver")
	if err != nil {
		return err
	}
	bob, err := a.Equipped(ctx, "replay-bob", "approver")
	if err != nil {
		return err
	}
	p := pair{a, alice, bob}
	for _, f := range []func(context.Context) error{p.doubledM1, p.repeatedM3, p.reordered, p.storms} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pair is two phones in the arena.
type pair struct {
	*arena.Arena
	alice, bob *arena.Phone
}

// doubledM1: the same M1 is applied twice. Two challenges, one of which counts.
func (p pair) doubledM1(ctx context.Context) error {
	for _, l := range []protocol.Level{1, 2} {
		one, err := p.AskFor(p.alice, arena.Door, l).Must(ctx)
		if err != nil {
			return err
		}
		two := *one
		err = p.Leaves(ctx, "the same M1 again", arena.Nothing, func() error { return two.Relay(ctx) })
		if err != nil {
			return err
		}
		p.Expect(two.Applied, arena.Challenged)
		p.Check(!bytes.Equal(one.M2, two.M2), "the same M1 got the same M2 twice: %x", one.M2)
		left := arena.Spent.And(arena.Refused(1))
		if l > 1 {
			left = left.And(arena.Tried)
		}
		err = p.Leaves(ctx, "two challenges to one M1", left, func() error {
			return p.Play(
				ctx,
				arena.Move{What: "the second challenge", On: &two, Sign: two.Honest(), Want: arena.Approved},
				arena.Move{What: "the first challenge, later", On: one, Sign: one.Honest(), Want: arena.Denied(protocol.CodeSerial)},
			)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// repeatedM3: the same M3 gets the same answer, sealed anew, also when the client has
// been suspended since.
func (p pair) repeatedM3(ctx context.Context) error {
	s, err := p.AskFor(p.alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	putBack, err := p.Restraints(ctx)
	if err != nil {
		return err
	}
	return p.Leaves(ctx, "an M3 and its repeats", arena.Spent.And(arena.Effects{"client": 0, "record/client": 2}), func() error {
		m3, first, err := p.Approve(ctx, s, arena.Approved)
		if err != nil {
			return err
		}
		seen := map[string]bool{string(first.Res.M4): true}
		for i := range 4 {
			if i == 1 && p.Break == "replay" {
				// Put back as it was before the serial was spent, seals and all.
				if err := p.Tamper(ctx, `DELETE FROM decision WHERE ref = (SELECT max(ref) FROM decision)`); err != nil {
					return err
				}
				if err := putBack(ctx); err != nil {
					return err
				}
			}
			if i == 2 {
				if err := p.Do(ctx, "client/replay-alice/suspend"); err != nil {
					return err
				}
			}
			r, err := s.Send(ctx, m3)
			if err != nil {
				return err
			}
			p.Expect(r.Named("repeat of an M3"), arena.Approved)
			p.Check(!seen[string(r.Res.M4)], "an M4 came twice: %x", r.Res.M4)
			seen[string(r.Res.M4)] = true
			p.sameTransaction(s, []arena.Reply{first, r})
		}
		return p.Do(ctx, "client/replay-alice/resume")
	})
}

// sameTransaction: the device verifies each decision, and their transaction is one.
func (p pair) sameTransaction(s *arena.Session, replies []arena.Reply, second ...*arena.Session) {
	ids := map[protocol.TransactionID]bool{}
	for _, r := range replies {
		check, err := s.Check(second...)
		p.Code("what the device knows", err, 0)
		d, err := check.Verify(r.Res.Decision)
		p.Code("decision of a repeat", err, 0)
		ids[d.Transaction] = true
	}
	p.Check(len(ids) == 1, "%d transactions from one M3: %v", len(ids), ids)
}

// reordered: messages of one session in another, and in each other's place.
func (p pair) reordered(ctx context.Context) error {
	one, err := p.AskFor(p.alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	two, err := p.AskFor(p.alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	m3, err := two.M3(ctx, two.Honest())
	if err != nil {
		return err
	}
	err = p.Leaves(ctx, "messages in the wrong place", arena.Nothing, func() error { return p.misplaced(ctx, one, two, m3) })
	if err != nil {
		return err
	}
	stray := *one
	p.Check(stray.Open(two.M2) != nil, "M2 of another session opens")
	return p.Leaves(ctx, "the newer serial first", arena.Spent.And(arena.Refused(1)), func() error {
		newer, err := two.Send(ctx, m3)
		p.Expect(newer.Named("the newer serial"), arena.Approved)
		if err != nil {
			return err
		}
		m3, err := one.M3(ctx, one.Honest())
		if err != nil {
			return err
		}
		_, err = one.Channel.OpenM4(m3, newer.Res.M4)
		p.Check(err != nil, "M4 of another session opens")
		older, err := one.Send(ctx, m3)
		p.Expect(older.Named("the older serial after it"), arena.Denied(protocol.CodeSerial))
		return err
	})
}

func (p pair) misplaced(ctx context.Context, one, two *arena.Session, m3 []byte) error {
	for _, c := range []struct {
		what string
		m3   []byte
		code protocol.Code
	}{
		{"M3 of the next session", m3, protocol.CodeFormat},
		{"M1 in place of M3", one.M1, protocol.CodeFormat},
		{"M2 in place of M3", one.M2, protocol.CodeFormat},
		{"an empty M3", []byte{0x31}, protocol.CodeFormat},
		{"an ME in place of M3", message.LinkError{Code: protocol.CodeLink}.Marshal(), protocol.CodeFormat},
	} {
		r, err := one.Send(ctx, c.m3)
		if err != nil {
			return err
		}
		p.Expect(r.Named(c.what), arena.HTTP(400, c.code))
	}
	for what, m1 := range map[string][]byte{"M3": m3, "M2": two.M2} {
		s := *one
		s.Req.M1 = m1
		if err := s.Relay(ctx); err != nil {
			return err
		}
		s.Applied.What = what + " in place of M1"
		p.Expect(s.Applied, arena.HTTP(400, protocol.CodeFormat))
	}
	return nil
}

// storm is how often the same M3 is sent at once.
const storm = 100

// storms send one M3 100 times at once, at each level, for both approvers and with a
// wrong password.
func (p pair) storms(ctx context.Context) error {
	for l := protocol.Level(1); l <= 3; l++ {
		s, err := p.AskFor(p.alice, arena.Door, l).Must(ctx)
		if err != nil {
			return err
		}
		left := arena.Spent
		if l > 1 {
			left = left.And(arena.Tried)
		}
		replies, err := p.storm(ctx, hail{fmt.Sprintf("level %d", l), s, s.Honest(), arena.Approved, left})
		if err != nil {
			return err
		}
		p.sameTransaction(s, replies)
	}
	if err := p.stormOfTwo(ctx); err != nil {
		return err
	}
	return p.stormOfGuesses(ctx)
}

func (p pair) stormOfTwo(ctx context.Context) error {
	first, err := p.AskFor(p.alice, arena.Door, 4).Must(ctx)
	if err != nil {
		return err
	}
	replies, err := p.storm(ctx, hail{"level 4", first, first.Honest(), arena.Pending, arena.Spent.And(arena.Tried)})
	if err != nil {
		return err
	}
	p.sameTransaction(first, replies)
	second, err := p.Second(p.bob, first, replies[0].Res.NextHandle).Must(ctx)
	if err != nil {
		return err
	}
	left := arena.Spent.And(arena.Tried, arena.Effects{"record/final": 1})
	replies, err = p.storm(ctx, hail{"second approver", second, second.Honest(), arena.Approved, left})
	if err != nil {
		return err
	}
	p.sameTransaction(first, replies, second)
	return nil
}

func (p pair) stormOfGuesses(ctx context.Context) error {
	s, err := p.AskFor(p.alice, arena.Door, 2).Must(ctx)
	if err != nil {
		return err
	}
	left := arena.Refused(1).And(arena.Effects{"restraint": 0, "attempt": 1})
	replies, err := p.storm(ctx, hail{"wrong password", s, s.Guess(0), arena.Retry, left})
	if err != nil {
		return err
	}
	for _, r := range replies {
		p.Check(r.P4.TriesLeft != nil && *r.P4.TriesLeft == 2, "a wrong password sent %d times leaves %v tries", storm, r.P4.TriesLeft)
	}
	state, err := p.ClientState(ctx, p.alice)
	p.Check(state.Password.Wrong == 1, "one wrong password sent %d times counts as %d", storm, state.Password.Wrong)
	if err != nil {
		return err
	}
	return p.Do(ctx, "client/replay-alice/unlock")
}

// hail is one M3 that is sent many times at once.
type hail struct {
	name string
	on   *arena.Session
	sign arena.Sign
	want arena.Verdict
	left arena.Effects
}

func (p pair) storm(ctx context.Context, h hail) (replies []arena.Reply, err error) {
	m3, err := h.on.M3(ctx, h.sign)
	if err != nil {
		return nil, err
	}
	return replies, p.Leaves(ctx, fmt.Sprintf("%s, %d at once", h.name, storm), h.left, func() error {
		replies, err = h.on.Storm(ctx, m3, storm)
		for _, r := range replies {
			p.Expect(r.Named(h.name+", at once"), h.want)
		}
		return err
	})
}

// handles swaps them between devices, clients, challenges and kinds.
func handles(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "handle-alice", "approver")
	if err != nil {
		return err
	}
	bob, err := a.Equipped(ctx, "handle-bob", "approver")
	if err != nil {
		return err
	}
	gate, err := a.EnrolDevice(ctx, "gate")
	if err != nil {
		return err
	}
	defer gate.Close()
	p := pair{a, alice, bob}
	if err := p.swappedHandles(ctx, gate); err != nil {
		return err
	}
	return p.pendingHandles(ctx, gate)
}

func (p pair) swappedHandles(ctx context.Context, gate *device.Device) error {
	one, err := p.AskFor(p.alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	other, err := p.AskFor(p.bob, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	ask := p.AskFor(p.alice, arena.Door, 1)
	ask.At = gate
	there, err := ask.Must(ctx)
	if err != nil {
		return err
	}
	m3, err := one.M3(ctx, one.Honest())
	if err != nil {
		return err
	}
	dead, closed := arena.HTTP(410, protocol.CodeExpired), arena.HTTP(400, protocol.CodeFormat)
	return p.Leaves(ctx, "handles in other hands", arena.Nothing, func() error {
		for _, c := range []struct {
			what   string
			at     *device.Device
			handle []byte
			want   arena.Verdict
		}{
			{"a handle at another device", gate, one.Handle, dead},
			{"another device's handle of the same client", one.At, there.Handle, dead},
			{"another client's handle", one.At, other.Handle, closed},
			{"another device's own handle", gate, there.Handle, closed},
			{"a short handle", one.At, make([]byte, 16), dead},
			{"a handle of zeros", one.At, make([]byte, deviceapi.MaxHandle), dead},
			{"no handle", one.At, nil, closed},
			{"a long handle", one.At, make([]byte, deviceapi.MaxHandle+1), closed},
			{"a cut handle", one.At, one.Handle[:len(one.Handle)-1], dead},
		} {
			r, err := one.SendAt(ctx, c.at, deviceapi.CountersignRequest{Handle: c.handle, M3: m3})
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			p.Expect(r.Named(c.what), c.want)
		}
		return nil
	})
}

// pendingHandles: one kind of handle never opens as the other.
func (p pair) pendingHandles(ctx context.Context, gate *device.Device) error {
	w, err := p.Wait(ctx, p.alice)
	if err != nil {
		return err
	}
	next := w.Reply.Res.NextHandle
	return p.Leaves(ctx, "handles of the wrong kind", arena.Nothing, func() error {
		r, err := w.SendAt(ctx, w.At, deviceapi.CountersignRequest{Handle: next, M3: w.M3})
		if err != nil {
			return err
		}
		p.Expect(r.Named("a pending handle as a session's"), arena.HTTP(410, protocol.CodeExpired))
		elsewhere := p.Second(p.bob, w.Session, next)
		elsewhere.At = gate
		other := p.Second(p.bob, w.Session, next)
		other.P1.Service, other.Req.Order.Services = arena.Door, []protocol.Service{arena.Door}
		for what, c := range map[string]struct {
			ask  arena.Ask
			want arena.Verdict
		}{
			"a session's handle as a pending one":    {p.Second(p.bob, w.Session, w.Handle), arena.InM2(protocol.CodeService)},
			"no pending handle":                      {p.Second(p.bob, w.Session, nil), arena.InM2(protocol.CodeService)},
			"a pending handle at another device":     {elsewhere, arena.InM2(protocol.CodeService)},
			"a pending handle with another service":  {other, arena.Challenged},
			"a pending handle where it is good":      {p.Second(p.bob, w.Session, next), arena.Challenged},
			"the first client's own pending handle":  {p.Second(p.alice, w.Session, next), arena.Challenged},
			"a pending handle that was cut":          {p.Second(p.bob, w.Session, next[:40]), arena.InM2(protocol.CodeService)},
			"a pending handle that is far too short": {p.Second(p.bob, w.Session, next[:3]), arena.InM2(protocol.CodeService)},
		} {
			s, err := c.ask.Apply(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s.Applied.What = what
			p.Expect(s.Applied, c.want)
		}
		return nil
	})
}
