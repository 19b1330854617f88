package attack

import (
	"bytes"
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
)

// replays sends again, doubled, at once and in another order.
func replays(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "replay-alice", "approver")
	bob := a.Equipped(ctx, "replay-bob", "approver")
	p := pair{a, alice, bob}
	for _, f := range []func(context.Context){p.doubledM1, p.repeatedM3, p.reordered, p.storms} {
		f(ctx)
	}
}

// pair is two phones in the arena.
type pair struct {
	*Arena
	alice, bob *Phone
}

// doubledM1: the same M1 is applied twice. Two challenges, one of which counts.
func (p pair) doubledM1(ctx context.Context) {
	for _, l := range []protocol.Level{1, 2} {
		one := p.AskFor(p.alice, Door, l).Must(ctx)
		two := *one
		p.Leaves(ctx, "the same M1 again", Nothing, func() { two.Relay(ctx) })
		p.Expect(two.Applied, Challenged)
		p.Check(!bytes.Equal(one.M2, two.M2), "the same M1 got the same M2 twice: %x", one.M2)
		left := Spent.And(Refused(1))
		if l > 1 {
			left = left.And(Tried)
		}
		p.Leaves(ctx, "two challenges to one M1", left, func() {
			p.Play(
				ctx,
				Move{What: "the second challenge", On: &two, Sign: two.Honest(), Want: Approved},
				Move{What: "the first challenge, later", On: one, Sign: one.Honest(), Want: Denied(protocol.CodeSerial)},
			)
		})
	}
}

// repeatedM3: the same M3 gets the same answer, sealed anew, also when the client has
// been suspended since.
func (p pair) repeatedM3(ctx context.Context) {
	s := p.AskFor(p.alice, Door, 1).Must(ctx)
	putBack := p.Restraints(ctx)
	p.Leaves(ctx, "an M3 and its repeats", Spent.And(Effects{
		"client": 0, "record/client": 2, "change": 1, "change_signature": 1, "head": 0, "record/change": 3,
	}), func() {
		m3, first := p.Approve(ctx, s, Approved)
		seen := map[string]bool{string(first.Res.M4): true}
		for i := range 4 {
			if i == 1 && harness.Break() == breakReplay {
				// Put back as it was before the serial was spent, seals and all.
				p.Tamper(ctx, `DELETE FROM decision WHERE ref = (SELECT max(ref) FROM decision)`)
				putBack(ctx)
			}
			if i == 2 {
				p.Do(ctx, "client/replay-alice/suspend")
			}
			r := s.Send(ctx, m3)
			p.Expect(r.Named("repeat of an M3"), Approved)
			p.Check(!seen[string(r.Res.M4)], "an M4 came twice: %x", r.Res.M4)
			seen[string(r.Res.M4)] = true
			p.sameTransaction(s, []Reply{first, r})
		}
		p.Do(ctx, "client/replay-alice/resume")
	})
}

// sameTransaction: the device verifies each decision, and their transaction is one.
func (p pair) sameTransaction(s *Session, replies []Reply, second ...*Session) {
	ids := map[protocol.TransactionID]bool{}
	for _, r := range replies {
		check := s.Check(second...)
		p.Code("what the device knows", nil, 0)
		d, err := check.Verify(r.Res.Decision)
		p.Code("decision of a repeat", err, 0)
		ids[d.Transaction] = true
	}
	p.Check(len(ids) == 1, "%d transactions from one M3: %v", len(ids), ids)
}

// reordered: messages of one session in another, and in each other's place.
func (p pair) reordered(ctx context.Context) {
	one := p.AskFor(p.alice, Door, 1).Must(ctx)
	two := p.AskFor(p.alice, Door, 1).Must(ctx)
	m3 := two.M3(ctx, two.Honest())
	p.Leaves(ctx, "messages in the wrong place", Nothing, func() { p.misplaced(ctx, one, two, m3) })
	stray := *one
	err := harness.Try(func() { stray.Open(two.M2) })
	p.Check(err != nil, "M2 of another session opens")
	p.Leaves(ctx, "the newer serial first", Spent.And(Refused(1)), func() {
		newer := two.Send(ctx, m3)
		p.Expect(newer.Named("the newer serial"), Approved)
		m3 := one.M3(ctx, one.Honest())
		_, err = one.Channel.OpenM4(m3, newer.Res.M4)
		p.Check(err != nil, "M4 of another session opens")
		older := one.Send(ctx, m3)
		p.Expect(older.Named("the older serial after it"), Denied(protocol.CodeSerial))
	})
}

func (p pair) misplaced(ctx context.Context, one, two *Session, m3 []byte) {
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
		r := one.Send(ctx, c.m3)
		p.Expect(r.Named(c.what), HTTP(400, c.code))
	}
	for what, m1 := range map[string][]byte{"M3": m3, "M2": two.M2} {
		s := *one
		s.Req.M1 = m1
		s.Relay(ctx)
		s.Applied.What = what + " in place of M1"
		p.Expect(s.Applied, HTTP(400, protocol.CodeFormat))
	}
}

// storm is how often the same M3 is sent at once.
const storm = 100

// storms send one M3 100 times at once, at each level, for both approvers and with a
// wrong password.
func (p pair) storms(ctx context.Context) {
	for l := protocol.Level(1); l <= 3; l++ {
		s := p.AskFor(p.alice, Door, l).Must(ctx)
		left := Spent
		if l > 1 {
			left = left.And(Tried)
		}
		replies := p.storm(ctx, hail{fmt.Sprintf("level %d", l), s, s.Honest(), Approved, left})
		p.sameTransaction(s, replies)
	}
	p.stormOfTwo(ctx)
	p.stormOfGuesses(ctx)
}

func (p pair) stormOfTwo(ctx context.Context) {
	first := p.AskFor(p.alice, Door, 4).Must(ctx)
	replies := p.storm(ctx, hail{"level 4", first, first.Honest(), Pending, Spent.And(Tried)})
	p.sameTransaction(first, replies)
	second := p.Second(p.bob, first, replies[0].Res.NextHandle).Must(ctx)
	left := Spent.And(Tried, Effects{"record/final": 1})
	replies = p.storm(ctx, hail{"second approver", second, second.Honest(), Approved, left})
	p.sameTransaction(first, replies, second)
}

func (p pair) stormOfGuesses(ctx context.Context) {
	s := p.AskFor(p.alice, Door, 2).Must(ctx)
	left := Refused(1).And(Effects{"restraint": 0, "attempt": 1})
	replies := p.storm(ctx, hail{"wrong password", s, s.Guess(0), Retry, left})
	for _, r := range replies {
		p.Check(r.P4.TriesLeft != nil && *r.P4.TriesLeft == 2, "a wrong password sent %d times leaves %v tries", storm, r.P4.TriesLeft)
	}
	state := p.ClientState(ctx, p.alice)
	p.Check(state.Password.Wrong == 1, "one wrong password sent %d times counts as %d", storm, state.Password.Wrong)
	p.Do(ctx, "client/replay-alice/unlock")
}

// hail is one M3 that is sent many times at once.
type hail struct {
	name string
	on   *Session
	sign Sign
	want Verdict
	left Effects
}

func (p pair) storm(ctx context.Context, h hail) (replies []Reply) {
	m3 := h.on.M3(ctx, h.sign)
	p.Leaves(ctx, fmt.Sprintf("%s, %d at once", h.name, storm), h.left, func() {
		replies = h.on.Storm(ctx, m3, storm)
		for _, r := range replies {
			p.Expect(r.Named(h.name+", at once"), h.want)
		}
	})
	return replies
}

// handles swaps them between devices, clients, challenges and kinds.
func handles(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "handle-alice", "approver")
	bob := a.Equipped(ctx, "handle-bob", "approver")
	gate := a.EnrolDevice(ctx, "gate")
	defer gate.Close()
	p := pair{a, alice, bob}
	p.swappedHandles(ctx, gate)
	p.pendingHandles(ctx, gate)
}

func (p pair) swappedHandles(ctx context.Context, gate *device.Device) {
	one := p.AskFor(p.alice, Door, 1).Must(ctx)
	other := p.AskFor(p.bob, Door, 1).Must(ctx)
	ask := p.AskFor(p.alice, Door, 1)
	ask.At = gate
	there := ask.Must(ctx)
	m3 := one.M3(ctx, one.Honest())
	dead, closed := HTTP(410, protocol.CodeExpired), HTTP(400, protocol.CodeFormat)
	p.Leaves(ctx, "handles in other hands", Nothing, func() {
		for _, c := range []struct {
			what   string
			at     *device.Device
			handle []byte
			want   Verdict
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
			{"the first bit of a handle altered", one.At, link.Flip(one.Handle, 0), dead},
			{"the hour of a handle altered", one.At, link.Flip(one.Handle, 31), dead},
			{"the nonce of a handle altered", one.At, link.Flip(one.Handle, 40), dead},
			{"the last bit of a handle altered", one.At, link.Flip(one.Handle, -1), dead},
		} {
			r := one.SendAt(ctx, c.at, deviceapi.CountersignRequest{Handle: c.handle, M3: m3})
			p.Expect(r.Named(c.what), c.want)
		}
	})
}

// pendingHandles: one kind of handle never opens as the other.
func (p pair) pendingHandles(ctx context.Context, gate *device.Device) {
	w := p.Wait(ctx, p.alice)
	next := w.Reply.Res.NextHandle
	p.Leaves(ctx, "handles of the wrong kind", Nothing, func() {
		r := w.SendAt(ctx, w.At, deviceapi.CountersignRequest{Handle: next, M3: w.M3})
		p.Expect(r.Named("a pending handle as a session's"), HTTP(410, protocol.CodeExpired))
		elsewhere := p.Second(p.bob, w.Session, next)
		elsewhere.At = gate
		other := p.Second(p.bob, w.Session, next)
		other.P1.Service, other.Req.Order.Services = Door, []protocol.Service{Door}
		for what, c := range map[string]struct {
			ask  Ask
			want Verdict
		}{
			"a session's handle as a pending one":    {p.Second(p.bob, w.Session, w.Handle), InM2(protocol.CodeService)},
			"no pending handle":                      {p.Second(p.bob, w.Session, nil), InM2(protocol.CodeService)},
			"a pending handle at another device":     {elsewhere, InM2(protocol.CodeService)},
			"a pending handle with another service":  {other, Challenged},
			"a pending handle where it is good":      {p.Second(p.bob, w.Session, next), Challenged},
			"the first client's own pending handle":  {p.Second(p.alice, w.Session, next), Challenged},
			"a pending handle that was cut":          {p.Second(p.bob, w.Session, next[:40]), InM2(protocol.CodeService)},
			"a pending handle that is far too short": {p.Second(p.bob, w.Session, next[:3]), InM2(protocol.CodeService)},
		} {
			s := c.ask.Apply(ctx)
			s.Applied.What = what
			p.Expect(s.Applied, c.want)
		}
	})
}
