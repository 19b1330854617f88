package attack

import (
	"bytes"
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// flips changes every bit of every message, at levels 1 to 4, one at a time. Afterwards the
// unaltered message is accepted, so that it was valid all the time.
func flips(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "flip-alice")
	bob := a.Equipped(ctx, "flip-bob", "approver")
	for _, l := range []level{
		{"level 1", a.Pay(alice, 4999), Approved, Spent.And(Charged)},
		{"level 2", a.Pay(alice, 5000), Approved, Spent.And(Tried, Charged)},
		{"level 3", a.AskFor(alice, Vault, 1), Approved, Spent.And(Tried)},
	} {
		l.flipped(ctx, a)
	}
	flipsOfTwo(ctx, a, [2]*Phone{alice, bob})
}

// flipsOfTwo is level 4, the messages of both approvers, at a strict device.
func flipsOfTwo(ctx context.Context, a *Arena, phones [2]*Phone) {
	ask := a.Pay(phones[0], 1_000_000)
	ask.Req.Strict = true
	first := level{"level 4", ask, Pending, Spent.And(Tried)}.flipped(ctx, a)
	ask = a.Second(phones[1], first.Session, first.Res.NextHandle)
	ask.Req.Strict = true
	flipNextHandle(ctx, a, ask)
	left := Spent.And(Tried, Charged, Effects{"record/final": 1})
	second := level{"level 4, second approver", ask, Approved, left}.flipped(ctx, a)
	check := first.Check(second.Session)
	flipDecision(a, "level 4, decision of both", check, second.Res.Decision)
}

// level is an honest authorization, whose messages are altered on the way.
type level struct {
	name string
	ask  Ask
	want Verdict
	left Effects
}

// flown is what an authorization came to.
type flown struct {
	*Session
	Reply
}

func (l level) flipped(ctx context.Context, a *Arena) (f flown) {
	s := &Session{Ask: l.ask}
	s.M1, s.ES = l.ask.Seal()
	s.Req.M1 = s.M1
	a.Leaves(ctx, l.name+", flips of M1", Nothing, func() { l.flipM1(ctx, a, *s) })
	s.Relay(ctx)
	a.Expect(s.Applied, Challenged)
	l.flipM2(a, *s)
	m3 := s.M3(ctx, s.Honest())
	a.Leaves(ctx, l.name+", flips of M3 and its handle", Nothing, func() { l.flipM3(ctx, a, *s, m3) })
	f.Session = s
	a.Leaves(ctx, l.name+", unaltered", l.left, func() {
		f.Reply = s.Send(ctx, m3)
		a.Expect(f.Named(l.name+", M3 unaltered"), l.want)
		l.sizes(a, *s, f.Reply)
		l.flipM4(a, f, m3)
	})
	return f
}

// longest is a message of levels 1 to 3, bytes.
const longest = 140

func (l level) sizes(a *Arena, s Session, r Reply) {
	if s.P2.Level == 4 {
		return
	}
	for _, m := range [][]byte{s.M1, s.M2, r.Message, r.Res.M4} {
		a.Check(len(m) <= longest, "%s: message %#x has %d bytes, more than %d", l.name, m[0], len(m), longest)
	}
}

func (l level) flipM1(ctx context.Context, a *Arena, s Session) {
	held := epochs(ctx, a, s.M1)
	Each(8*len(s.M1), func(bit int) {
		altered := s
		altered.Req.M1 = link.Flip(s.M1, bit)
		altered.Relay(ctx)
		altered.Applied.What = fmt.Sprintf("%s, bit %d of M1", l.name, bit)
		a.Expect(altered.Applied, afterM1(bit, held))
	})
}

// epochs says which bits of se, changed, make it another kem epoch that the appliance
// has a key for.
func epochs(ctx context.Context, a *Arena, m1 []byte) map[int]bool {
	document := a.TrustDocument(ctx)
	held := map[int]bool{}
	for _, raw := range document.KeyCerts {
		cert := harness.Must(trust.VerifyKeyCert(raw, document.RootKey))
		for bit := 10; bit < 16 && cert.Use == trust.UseKEM; bit++ {
			held[bit] = held[bit] || link.Flip(m1, bit)[1] == byte(cert.Epoch%64)
		}
	}
	return held
}

// afterM1: the version is judged first, then the kind; a suite that is not offered,
// then an epoch that is not held; the rest does not open.
func afterM1(bit int, held map[int]bool) Verdict {
	switch {
	case bit >= 4 && bit < 10:
		return HTTP(400, protocol.CodeVersion)
	case bit >= 10 && bit < 16 && !held[bit]:
		return KeyUpdate
	default:
		return HTTP(400, protocol.CodeFormat)
	}
}

// flipM2: the phone signs nothing.
func (l level) flipM2(a *Arena, s Session) {
	for bit := range 8 * len(s.M2) {
		altered := s
		err := harness.Try(func() { altered.Open(link.Flip(s.M2, bit)) })
		a.Check(err != nil, "%s, bit %d of M2: the phone takes it: %x", l.name, bit, link.Flip(s.M2, bit))
	}
}

func (l level) flipM3(ctx context.Context, a *Arena, s Session, m3 []byte) {
	Each(8*len(m3), func(bit int) {
		altered := link.Flip(m3, bit)
		if harness.Break() == breakFlip && l.name == "level 1" && bit == 8*len(m3)-1 {
			altered = m3
		}
		r := s.Send(ctx, altered)
		want := HTTP(400, protocol.CodeFormat)
		if bit >= 4 && bit < 8 {
			want.Code = protocol.CodeVersion
		}
		a.Expect(r.Named(fmt.Sprintf("%s, bit %d of M3", l.name, bit)), want)
	})
	Each(8*len(s.Handle), func(bit int) {
		r := s.SendAt(ctx, s.At, deviceapi.CountersignRequest{Handle: link.Flip(s.Handle, bit), M3: m3})
		a.Expect(r.Named(fmt.Sprintf("%s, bit %d of the handle", l.name, bit)), HTTP(410, protocol.CodeExpired))
	})
}

// flipM4: neither phone nor device takes an altered answer.
func (l level) flipM4(a *Arena, f flown, m3 []byte) {
	m4 := f.Res.M4
	for bit := range 8 * len(m4) {
		_, err := f.Channel.OpenM4(m3, link.Flip(m4, bit))
		a.Check(err != nil, "%s, bit %d of M4: the phone takes it: %x", l.name, bit, link.Flip(m4, bit))
	}
	if f.Req.Handle != nil {
		return // the decision is on both sessions
	}
	check := f.Check()
	a.Check(true, "the device knows %s", l.name)
	flipDecision(a, l.name+", decision", check, f.Res.Decision)
}

// flipDecision: the device does not act.
func flipDecision(a *Arena, what string, check receipt.Check, decision []byte) {
	_, err := check.Verify(decision)
	a.Code(what+", unaltered", err, 0)
	for bit := range 8 * len(decision) {
		_, err := check.Verify(link.Flip(decision, bit))
		code, _ := protocol.CodeOf(err)
		good := code == protocol.CodeFormat || code == protocol.CodeCertificate
		a.Check(good, "%s, bit %d: %v; wanted code 1 or 19: %x", what, bit, err, link.Flip(decision, bit))
	}
}

// flipNextHandle: what names the first approval is sealed.
func flipNextHandle(ctx context.Context, a *Arena, ask Ask) {
	handle := ask.Req.Handle
	a.Leaves(ctx, "flips of the pending handle", Nothing, func() {
		Each(8*len(handle), func(bit int) {
			altered := ask
			altered.Req.Handle = link.Flip(handle, bit)
			s := altered.Apply(ctx)
			s.Applied.What = fmt.Sprintf("bit %d of the pending handle %x", bit, altered.Req.Handle)
			a.Expect(s.Applied, InM2(protocol.CodeService))
		})
	})
}

// flipUpdate: a phone takes the parts of an altered MU that are still authentic, and nothing else.
// The phone knows only the root, so that it has everything to take.
func flipUpdate(a *Arena, pinned trust.State, mu []byte) {
	whole, err := pinned.Update(mu, Now())
	a.Check(err == nil && len(whole.Keys) > 0, "MU unaltered: %d keys, %v", len(whole.Keys), err)
	for bit := range 8 * len(mu) {
		got, err := pinned.Update(link.Flip(mu, bit), Now())
		good := got.Root == pinned.Root && got.NextRootHash == pinned.NextRootHash
		good = good && (err != nil || len(got.Keys) < len(whole.Keys))
		for use, key := range got.Keys {
			good = good && bytes.Equal(key.Raw, whole.Keys[use].Raw)
		}
		a.Check(good, "bit %d of MU: the phone has root %v with %d keys, %v: %x", bit, got.Root, len(got.Keys), err, link.Flip(mu, bit))
	}
}

// ownRelay attacks the relay that the appliance came with, over its link: its hook
// is told of each approval once, and of nothing else.
func ownRelay(ctx context.Context, a *Arena) {
	alice := a.Plain(ctx, "relay-alice")
	conn := harness.Must(link.Dial(ctx, a.Link))
	defer func() { _ = conn.Close() }() // every answer is there, or an error is returned
	r := relayLink{a, conn}
	s := &Session{Ask: a.AskFor(alice, Door, 1)}
	s.M1, s.ES = s.Seal()
	a.Leaves(ctx, "flips of M1 at the relay", Nothing, func() { r.flipped(s.M1) })
	s.M2 = harness.Must(conn.Ask(s.M1))
	s.Open(s.M2)
	m3 := s.M3(ctx, s.Honest())
	a.Leaves(ctx, "flips of M3 at the relay", Nothing, func() { r.flipped(m3) })
	left := Spent.And(Effects{"acts": 1, "record/outcome": 1})
	a.Leaves(ctx, "M3 at the relay, unaltered", left, func() { r.approved(ctx, s, m3) })
	a.Leaves(ctx, "M3 at the relay, again and again", Nothing, func() {
		for range 10 {
			r.answered(s, m3)
		}
		_, err := conn.Ask(s.M1) // applied once: it gets its M2 again, or is refused
		harness.Do(err)
	})
}

// link is one connection to the relay.
type relayLink struct {
	*Arena
	conn link.Conn
}

// flipped sends a message with every bit changed in turn. Every bit beyond the clear header is
// authenticated, so that the answer is an ME with code 1. In the header a bit may make another
// version, kind, suite or epoch.
func (l relayLink) flipped(msg []byte) {
	for bit := range 8 * len(msg) {
		answer := harness.Must(l.conn.Ask(link.Flip(msg, bit)))
		me, err := message.ParseLinkError(answer)
		good := err == nil && (me.Code == protocol.CodeFormat || bit < 16 && (me.Code == protocol.CodeVersion || me.Code == protocol.CodeExpired))
		if err != nil && bit/8 == 1 {
			_, err = trust.ParseKeyUpdate(answer)
			good = err == nil
		}
		l.Check(good, "bit %d of %x: answered %x", bit, msg, answer)
	}
}

// answered sends M3, which must be answered by an approval.
func (l relayLink) answered(s *Session, m3 []byte) {
	m4 := harness.Must(l.conn.Ask(m3))
	raw := harness.Must(s.Channel.OpenM4(m3, m4))
	p4, err := message.ParseP4(raw)
	l.Check(err == nil && p4.Result == protocol.ResultApproved, "M4: %+v, %v", p4, err)
	harness.Do(err)
}

// approved is answered, and waits until the relay has told what it did.
func (l relayLink) approved(ctx context.Context, s *Session, m3 []byte) {
	before := l.Outcomes(ctx)
	l.answered(s, m3)
	harness.Do(harness.Until(ctx, "the relay's report", func() (bool, error) {
		return l.Outcomes(ctx) > before, nil
	}))
}
