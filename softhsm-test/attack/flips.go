package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/wire"
)

// flip gives a copy with one bit changed. Bit 0 is the highest of byte 0.
func flip(msg []byte, bit int) []byte {
	out := slices.Clone(msg)
	out[bit/8] ^= 0x80 >> (bit % 8)
	return out
}

// flips changes every bit of every message, at levels 1 to 4, one at a time. After
// it the same message goes on unaltered and is taken: it was alive all the time.
func flips(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "flip-alice")
	if err != nil {
		return err
	}
	bob, err := a.Equipped(ctx, "flip-bob", "approver")
	if err != nil {
		return err
	}
	for _, l := range []level{
		{"level 1", a.Pay(alice, 4999), arena.Approved, arena.Spent.And(arena.Charged)},
		{"level 2", a.Pay(alice, 5000), arena.Approved, arena.Spent.And(arena.Tried, arena.Charged)},
		{"level 3", a.AskFor(alice, arena.Vault, 1), arena.Approved, arena.Spent.And(arena.Tried)},
	} {
		if _, err := l.flipped(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return flipsOfTwo(ctx, a, [2]*arena.Phone{alice, bob})
}

// flipsOfTwo is level 4, the messages of both approvers, at a strict device.
func flipsOfTwo(ctx context.Context, a *arena.Arena, phones [2]*arena.Phone) error {
	ask := a.Pay(phones[0], 1_000_000)
	ask.Req.Strict = true
	first, err := level{"level 4", ask, arena.Pending, arena.Spent.And(arena.Tried)}.flipped(ctx, a)
	if err != nil {
		return err
	}
	ask = a.Second(phones[1], first.Session, first.Res.NextHandle)
	ask.Req.Strict = true
	if err := flipNextHandle(ctx, a, ask); err != nil {
		return err
	}
	left := arena.Spent.And(arena.Tried, arena.Charged, arena.Effects{"record/final": 1})
	second, err := level{"level 4, second approver", ask, arena.Approved, left}.flipped(ctx, a)
	if err != nil {
		return err
	}
	check, err := first.Check(second.Session)
	if err != nil {
		return err
	}
	flipDecision(a, "level 4, decision of both", check, second.Res.Decision)
	return nil
}

// level is an honest authorization, whose messages are altered on the way.
type level struct {
	name string
	ask  arena.Ask
	want arena.Verdict
	left arena.Effects
}

// flown is what an authorization came to.
type flown struct {
	*arena.Session
	arena.Reply
}

func (l level) flipped(ctx context.Context, a *arena.Arena) (f flown, err error) {
	s := &arena.Session{Ask: l.ask}
	if s.M1, s.ES, err = l.ask.Seal(); err != nil {
		return f, err
	}
	s.Req.M1 = s.M1
	err = a.Leaves(ctx, l.name+", flips of M1", arena.Nothing, func() error { return l.flipM1(ctx, a, *s) })
	if err != nil {
		return f, err
	}
	if err := s.Relay(ctx); err != nil {
		return f, err
	}
	a.Expect(s.Applied, arena.Challenged)
	l.flipM2(a, *s)
	m3, err := s.M3(ctx, s.Honest())
	if err != nil {
		return f, err
	}
	err = a.Leaves(ctx, l.name+", flips of M3 and its handle", arena.Nothing, func() error { return l.flipM3(ctx, a, *s, m3) })
	if err != nil {
		return f, err
	}
	f.Session = s
	return f, a.Leaves(ctx, l.name+", unaltered", l.left, func() error {
		f.Reply, err = s.Send(ctx, m3)
		a.Expect(f.Named(l.name+", M3 unaltered"), l.want)
		l.sizes(a, *s, f.Reply)
		l.flipM4(a, f, m3)
		return err
	})
}

// longest is a message of levels 1 to 3, bytes.
const longest = 140

func (l level) sizes(a *arena.Arena, s arena.Session, r arena.Reply) {
	if s.P2.Level == 4 {
		return
	}
	for _, m := range [][]byte{s.M1, s.M2, r.Message, r.Res.M4} {
		a.Check(len(m) <= longest, "%s: message %#x has %d bytes, more than %d", l.name, m[0], len(m), longest)
	}
}

func (l level) flipM1(ctx context.Context, a *arena.Arena, s arena.Session) error {
	held, err := epochs(ctx, a, s.M1)
	if err != nil {
		return err
	}
	return arena.Each(8*len(s.M1), func(bit int) error {
		altered := s
		altered.Req.M1 = flip(s.M1, bit)
		err := altered.Relay(ctx)
		altered.Applied.What = fmt.Sprintf("%s, bit %d of M1", l.name, bit)
		a.Expect(altered.Applied, afterM1(bit, held))
		return err
	})
}

// epochs says which bits of se, changed, make it another kem epoch that the appliance
// has a key for.
func epochs(ctx context.Context, a *arena.Arena, m1 []byte) (map[int]bool, error) {
	document, err := a.TrustDocument(ctx)
	if err != nil {
		return nil, err
	}
	held := map[int]bool{}
	for _, raw := range document.KeyCerts {
		cert, err := trust.VerifyKeyCert(raw, document.RootKey)
		if err != nil {
			return nil, err
		}
		for bit := 10; bit < 16 && cert.Use == trust.UseKEM; bit++ {
			held[bit] = held[bit] || flip(m1, bit)[1] == byte(cert.Epoch%64)
		}
	}
	return held, nil
}

// afterM1: the version is judged first, then the kind; a suite that is not offered,
// then an epoch that is not held; the rest does not open.
func afterM1(bit int, held map[int]bool) arena.Verdict {
	switch {
	case bit >= 4 && bit < 10:
		return arena.HTTP(400, protocol.CodeVersion)
	case bit >= 10 && bit < 16 && !held[bit]:
		return arena.KeyUpdate
	default:
		return arena.HTTP(400, protocol.CodeFormat)
	}
}

// flipM2: the phone signs nothing.
func (l level) flipM2(a *arena.Arena, s arena.Session) {
	for bit := range 8 * len(s.M2) {
		altered := s
		err := altered.Open(flip(s.M2, bit))
		a.Check(err != nil, "%s, bit %d of M2: the phone takes it: %x", l.name, bit, flip(s.M2, bit))
	}
}

func (l level) flipM3(ctx context.Context, a *arena.Arena, s arena.Session, m3 []byte) error {
	err := arena.Each(8*len(m3), func(bit int) error {
		altered := flip(m3, bit)
		if a.Break == "flip" && l.name == "level 1" && bit == 8*len(m3)-1 {
			altered = m3
		}
		r, err := s.Send(ctx, altered)
		want := arena.HTTP(400, protocol.CodeFormat)
		if bit >= 4 && bit < 8 {
			want.Code = protocol.CodeVersion
		}
		a.Expect(r.Named(fmt.Sprintf("%s, bit %d of M3", l.name, bit)), want)
		return err
	})
	if err != nil {
		return err
	}
	return arena.Each(8*len(s.Handle), func(bit int) error {
		r, err := s.SendAt(ctx, s.At, deviceapi.CountersignRequest{Handle: flip(s.Handle, bit), M3: m3})
		a.Expect(r.Named(fmt.Sprintf("%s, bit %d of the handle", l.name, bit)), arena.HTTP(410, protocol.CodeExpired))
		return err
	})
}

// flipM4: neither phone nor device takes an altered answer.
func (l level) flipM4(a *arena.Arena, f flown, m3 []byte) {
	m4 := f.Res.M4
	for bit := range 8 * len(m4) {
		_, err := f.Channel.OpenM4(m3, flip(m4, bit))
		a.Check(err != nil, "%s, bit %d of M4: the phone takes it: %x", l.name, bit, flip(m4, bit))
	}
	if f.Req.Handle != nil {
		return // the decision is on both sessions
	}
	check, err := f.Check()
	a.Check(err == nil, "%s: %v", l.name, err)
	flipDecision(a, l.name+", decision", check, f.Res.Decision)
}

// flipDecision: the device does not act.
func flipDecision(a *arena.Arena, what string, check receipt.Check, decision []byte) {
	_, err := check.Verify(decision)
	a.Code(what+", unaltered", err, 0)
	for bit := range 8 * len(decision) {
		_, err := check.Verify(flip(decision, bit))
		code, _ := protocol.CodeOf(err)
		good := code == protocol.CodeFormat || code == protocol.CodeCertificate
		a.Check(good, "%s, bit %d: %v; wanted code 1 or 19: %x", what, bit, err, flip(decision, bit))
	}
}

// flipNextHandle: what names the first approval is sealed.
func flipNextHandle(ctx context.Context, a *arena.Arena, ask arena.Ask) error {
	handle := ask.Req.Handle
	return a.Leaves(ctx, "flips of the pending handle", arena.Nothing, func() error {
		return arena.Each(8*len(handle), func(bit int) error {
			altered := ask
			altered.Req.Handle = flip(handle, bit)
			s, err := altered.Apply(ctx)
			if err != nil {
				return err
			}
			s.Applied.What = fmt.Sprintf("bit %d of the pending handle %x", bit, altered.Req.Handle)
			a.Expect(s.Applied, arena.InM2(protocol.CodeService))
			return nil
		})
	})
}

// flipUpdate: a phone takes from an altered MU what is still authentic, and nothing
// else. It is a phone that knows nothing but the root yet, so that it has all to take.
func flipUpdate(a *arena.Arena, pinned trust.State, mu []byte) {
	whole, err := pinned.Update(mu, arena.Now())
	a.Check(err == nil && len(whole.Keys) > 0, "MU unaltered: %d keys, %v", len(whole.Keys), err)
	for bit := range 8 * len(mu) {
		got, err := pinned.Update(flip(mu, bit), arena.Now())
		good := got.Root == pinned.Root && got.NextRootHash == pinned.NextRootHash
		good = good && (err != nil || len(got.Keys) < len(whole.Keys))
		for use, key := range got.Keys {
			good = good && bytes.Equal(key.Raw, whole.Keys[use].Raw)
		}
		a.Check(good, "bit %d of MU: the phone has root %v with %d keys, %v: %x", bit, got.Root, len(got.Keys), err, flip(mu, bit))
	}
}

// ownRelay attacks the relay that the appliance came with, over its link: its hook
// is told of each approval once, and of nothing else.
func ownRelay(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Plain(ctx, "relay-alice")
	if err != nil {
		return err
	}
	conn, err := wire.Dial(ctx, a.Link)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // every answer is there, or an error is returned
	r := link{a, conn}
	s := &arena.Session{Ask: a.AskFor(alice, arena.Door, 1)}
	if s.M1, s.ES, err = s.Seal(); err != nil {
		return err
	}
	err = a.Leaves(ctx, "flips of M1 at the relay", arena.Nothing, func() error { return r.flipped(s.M1) })
	if err != nil {
		return err
	}
	if s.M2, err = conn.Ask(s.M1); err != nil {
		return err
	}
	if err := s.Open(s.M2); err != nil {
		return err
	}
	m3, err := s.M3(ctx, s.Honest())
	if err != nil {
		return err
	}
	err = a.Leaves(ctx, "flips of M3 at the relay", arena.Nothing, func() error { return r.flipped(m3) })
	if err != nil {
		return err
	}
	left := arena.Spent.And(arena.Effects{"acts": 1, "record/outcome": 1})
	err = a.Leaves(ctx, "M3 at the relay, unaltered", left, func() error { return r.approved(ctx, s, m3) })
	if err != nil {
		return err
	}
	return a.Leaves(ctx, "M3 at the relay, again and again", arena.Nothing, func() error {
		for range 10 {
			if err := r.answered(s, m3); err != nil {
				return err
			}
		}
		_, err := conn.Ask(s.M1) // applied once: it gets its M2 again, or is refused
		return err
	})
}

// link is one connection to the relay.
type link struct {
	*arena.Arena
	conn wire.Conn
}

// flipped sends a message with every bit changed in turn; each is answered by an ME,
// or an MU where the key epoch is another.
func (l link) flipped(msg []byte) error {
	for bit := range 8 * len(msg) {
		answer, err := l.conn.Ask(flip(msg, bit))
		if err != nil {
			return fmt.Errorf("bit %d of %x: %w", bit, msg, err)
		}
		kind, err := message.Kind(answer)
		l.Check(err == nil && (kind == message.KindLinkError || kind == message.KindKeyUpdate), "bit %d of %x: answered %x", bit, msg, answer)
	}
	return nil
}

// answered sends M3, which must be answered by an approval.
func (l link) answered(s *arena.Session, m3 []byte) error {
	m4, err := l.conn.Ask(m3)
	if err != nil {
		return err
	}
	raw, err := s.Channel.OpenM4(m3, m4)
	if err != nil {
		return fmt.Errorf("M4 %x: %w", m4, err)
	}
	p4, err := message.ParseP4(raw)
	l.Check(err == nil && p4.Result == protocol.ResultApproved, "M4: %+v, %v", p4, err)
	return err
}

// approved is answered, and waits until the relay has told what it did.
func (l link) approved(ctx context.Context, s *arena.Session, m3 []byte) error {
	before, err := l.Outcomes(ctx)
	if err != nil {
		return err
	}
	if err := l.answered(s, m3); err != nil {
		return err
	}
	return rig.Until(ctx, "the relay's report", func() (bool, error) {
		now, err := l.Outcomes(ctx)
		return now > before, err
	})
}
