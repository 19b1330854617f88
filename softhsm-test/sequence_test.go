package softhsmtest

import (
	"bytes"
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/phone"
)

// TestReplayedM3 sends the same countersignature again and again.
func TestReplayedM3(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	b.changes(acted, func() {
		c := b.link()
		s := b.challenge(c, p, p.Next(100))
		m3 := b.m3(s, protocol.Approve)
		seen := [][]byte{}
		for range 5 {
			m4 := must[[]byte](t)(c.Ask(m3))
			p4, err := s.Result(m3, m4)
			if err != nil {
				t.Fatal(err)
			}
			wantResult(t, p4, message.P4{Result: protocol.ResultApproved})
			r := m4[2:10]
			for _, earlier := range seen {
				if bytes.Equal(earlier, r) {
					t.Errorf("r %x came twice", r)
				}
			}
			seen = append(seen, r)
		}
		wantResult(t, b.settle(b.link(), s, m3), message.P4{Result: protocol.ResultApproved}) // on another link
	})
}

// TestReplayedM1 gets the M2 that is there: the device applies an M1 once.
func TestReplayedM1(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	s := b.apply(p, p.Next(100))
	first := b.ask(s.M1)
	if again := b.ask(s.M1); !bytes.Equal(first, again) {
		t.Errorf("M2 %x, then %x", first, again)
	}
}

func TestSerials(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	spent := p.Next(100)
	spent.Serial = phone.NewSerial(10)
	b.changes(acted, func() {
		wantResult(t, b.authorize(p, spent), message.P4{Result: protocol.ResultApproved})
	})
	for _, c := range []struct {
		name   string
		serial protocol.Serial
		code   protocol.Code
	}{
		{"lower counter", phone.NewSerial(9), protocol.CodeSerial},
		{"counter 0", phone.NewSerial(0), protocol.CodeSerial},
		{"the same serial in another message", spent.Serial, protocol.CodeSerial},
		{"the same counter with another random part", phone.NewSerial(10), protocol.CodeClone},
	} {
		t.Run(c.name, func(t *testing.T) {
			again := spent
			again.Serial = c.serial
			before := b.highest("alice")
			b.changes(rig.Tally{Refused: 1}, func() {
				wantResult(t, b.authorize(p, again), message.P4{Reason: c.code})
			})
			if after := b.highest("alice"); after != before {
				t.Errorf("highest counter went from %d to %d", before, after)
			}
		})
	}
	higher := spent
	higher.Serial = phone.NewSerial(11)
	wantResult(t, b.authorize(p, higher), message.P4{Result: protocol.ResultApproved})
}

func (b *bench) highest(name string) int64 {
	b.Helper()
	client, err := b.Client(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	return client.Highest
}

func TestBadCountersignature(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	c := b.link()
	s := b.challenge(c, p, p.Next(100))
	good := b.m3(s, protocol.Approve)
	_, raw, err := s.OpenM3(good)
	if err != nil {
		t.Fatal(err)
	}
	approved := must[message.P3](t)(message.ParseP3(raw))
	for _, bad := range []struct {
		name    string
		attempt uint8
		p3      func(*message.P3)
		code    protocol.Code
	}{
		{"another signature", 0, func(p *message.P3) { p.Signature[0] ^= 1 }, protocol.CodeSignature},
		{"signature of zeros", 0, func(p *message.P3) { p.Signature = [64]byte{} }, protocol.CodeSignature},
		{"verdict turned round", 0, func(p *message.P3) { p.Verdict = protocol.Refuse }, protocol.CodeSignature},
		{"key that was not enrolled", 0, func(p *message.P3) { p.Slot = protocol.SlotUV }, protocol.CodeSignature},
		{"proof that was not signed", 0, func(p *message.P3) { p.Proof = make([]byte, message.ProofSize) }, protocol.CodeSignature},
		{"second attempt without a first", 1, func(*message.P3) {}, protocol.CodeSerial},
	} {
		t.Run(bad.name, func(t *testing.T) {
			p3 := approved
			bad.p3(&p3)
			b.changes(nothing, func() {
				wantResult(t, b.settle(c, s, s.Seal(bad.attempt, p3)), message.P4{Reason: bad.code})
			})
		})
	}
	b.changes(acted, func() {
		wantResult(t, b.settle(c, s, good), message.P4{Result: protocol.ResultApproved})
	})
}

// wireView is what anybody between phone and appliance sees of an authorization.
type wireView struct{ m1, m2, m3, m4 int }

// TestUnknownClient holds that a client nobody enrolled looks like one that was
// refused, to the device too.
func TestUnknownClient(t *testing.T) {
	b := newBench(t)
	known, other := b.phone("alice"), b.phone("bob")
	suspended := b.phone("carol")
	if r, err := b.Ctl(t.Context(), "client", "suspend", "carol"); err != nil || r.Code != 0 {
		t.Fatalf("suspend: %+v, %v", r, err)
	}
	stranger := must[*phone.Phone](t)(phone.Stranger(known.Trust))
	forged := *other
	forged.ID = known.ID // another's key under a known name
	views := map[string]wireView{}
	codes := map[string]protocol.Code{}
	for name, c := range map[string]struct {
		p       *phone.Phone
		verdict protocol.Verdict
	}{
		"unknown": {stranger, protocol.Approve}, "refused": {known, protocol.Refuse},
		"suspended": {suspended, protocol.Approve}, "forged": {&forged, protocol.Approve},
	} {
		link := b.link()
		s := b.apply(c.p, c.p.Next(100))
		m2 := must[[]byte](t)(link.Ask(s.M1))
		if err := s.Open(m2); err != nil || s.P2.Code != 0 {
			t.Fatalf("%s: challenge %+v, %v", name, s.P2, err)
		}
		m3 := b.m3(s, c.verdict)
		m4 := must[[]byte](t)(link.Ask(m3))
		p4, err := s.Result(m3, m4)
		if err != nil || p4.Result != protocol.ResultDenied {
			t.Fatalf("%s: %+v, %v", name, p4, err)
		}
		views[name], codes[name] = wireView{len(s.M1), len(m2), len(m3), len(m4)}, p4.Reason
	}
	for name, want := range map[string]protocol.Code{
		"unknown": protocol.CodeRefused, "refused": protocol.CodeUserRefused,
		"suspended": protocol.CodeSuspended, "forged": protocol.CodeSignature,
	} {
		if codes[name] != want {
			t.Errorf("%s: code %d, want %d", name, uint8(codes[name]), uint8(want))
		}
		if views[name] != views["refused"] {
			t.Errorf("%s: sizes %v, a refused one has %v", name, views[name], views["refused"])
		}
	}
	if acts := must[[]rig.Act](t)(b.Acts()); len(acts) != 0 {
		t.Errorf("acts %+v", acts)
	}
}
