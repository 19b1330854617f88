package softhsmtest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// TestIndependentClient is a client that knows only PROTOCOL.md.
func TestIndependentClient(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	c := b.link()
	var s *phone.Session
	var sizes [4]int
	b.changes(acted, func() {
		s = b.apply(p, p.Next(100))
		m2 := must[[]byte](t)(c.Ask(s.M1))
		if err := s.Open(m2); err != nil {
			t.Fatal(err)
		}
		m3 := b.m3(s, protocol.Approve)
		m4 := must[[]byte](t)(c.Ask(m3))
		p4, err := s.Result(m3, m4)
		if err != nil {
			t.Fatal(err)
		}
		wantResult(t, p4, message.P4{Result: protocol.ResultApproved})
		sizes = [4]int{len(s.M1), len(m2), len(m3), len(m4)}
	})
	// One byte less than the 82 of PROTOCOL.md §3, which counts a service of 256 or more.
	if want := [4]int{81, 74, 88, 31}; sizes != want {
		t.Errorf("messages of %v bytes, want %v", sizes, want)
	}
	if s.P2.DeviceName != "Countersign dev box" || s.P2.Level != 1 || s.P2.Factors != protocol.FactorSignature {
		t.Errorf("challenge %+v", s.P2)
	}
	acts := must[[]harness.Act](t)(b.Acts())
	if act := acts[len(acts)-1]; act.Service != 100 || act.Level != 1 || act.Amount != nil || act.Device[:8] != s.P2.Device.String() {
		t.Errorf("act %+v", act)
	}
	b.changes(denied, func() {
		s = b.challenge(c, p, p.Next(100))
		wantResult(t, b.settle(c, s, b.m3(s, protocol.Refuse)), message.P4{Reason: protocol.CodeUserRefused})
	})
}

func TestMalformedMessages(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	m1 := b.apply(p, p.Next(100)).M1
	garbage := bytes.Repeat([]byte{0xA5}, len(m1)-2)
	for _, c := range []struct {
		name    string
		message []byte
		code    protocol.Code
	}{
		{"no session for M3", append([]byte{0x31, 0}, garbage...), protocol.CodeExpired}, // the first message this relay gets
		{"M1 cut short", m1[:len(m1)-1], protocol.CodeFormat},
		{"M1 with a byte more", append(slices.Clone(m1), 0), protocol.CodeFormat},
		{"M1 of its first byte", m1[:1], protocol.CodeFormat},
		{"M1 of garbage", append([]byte{0x11, 0x01}, garbage...), protocol.CodeFormat},
		{"point off the curve", slices.Concat(m1[:2], []byte{2}, bytes.Repeat([]byte{0xFF}, 32), m1[35:]), protocol.CodeFormat},
		{"version 2", append([]byte{0x12}, m1[1:]...), protocol.CodeVersion},
		{"version 0", append([]byte{0x10}, m1[1:]...), protocol.CodeVersion},
		{"suite 2", slices.Concat(m1[:1], []byte{m1[1] | 0x40}, m1[2:]), protocol.CodeVersion},
		{"a message that only devices send", append([]byte{0x21}, m1[1:]...), protocol.CodeFormat},
		{"no kind of message", append([]byte{0x91}, m1[1:]...), protocol.CodeFormat},
		{"an ME", []byte{0xE1, 1, 0}, protocol.CodeFormat},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.changes(nothing, func() { wantLinkError(t, b.ask(c.message), c.code) })
		})
	}
	wantResult(t, b.authorize(p, p.Next(100)), message.P4{Result: protocol.ResultApproved})
}

func TestUnknownEpoch(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	kem, _ := p.Trust.Key(trust.UseKEM)
	other := kem.KeyCert
	other.Epoch = 40
	b.changes(nothing, func() {
		p1 := p.Next(100)
		s := must[*phone.Session](t)(p.ApplyTo(other, p1.Marshal()))
		mu := b.ask(s.M1)
		update, err := trust.ParseKeyUpdate(mu)
		if err != nil {
			t.Fatalf("answer %x: %v", mu, err)
		}
		cert, err := trust.VerifyKeyCert(update.Certs[0], p.Trust.Root)
		if err != nil || cert.Use != trust.UseKEM || cert.Epoch != kem.Epoch || cert.Key != kem.KeyCert.Key {
			t.Errorf("first certificate of MU %+v, %v: want kem of epoch %d", cert, err, kem.Epoch)
		}
	})
}

func TestOversizedFrame(t *testing.T) {
	b := newBench(t)
	for _, head := range [][]byte{{0x08, 0x01}, {0xFF, 0xFF}, {0, 0}} {
		t.Run(hex.EncodeToString(head), func(t *testing.T) {
			c := b.link()
			if _, err := c.Write(head); err != nil {
				t.Fatal(err)
			}
			wantLinkError(t, must[[]byte](t)(message.ReadFrame(c)), protocol.CodeFormat)
			if _, err := message.ReadFrame(c); !errors.Is(err, io.EOF) {
				t.Errorf("the link stays open: %v", err)
			}
		})
	}
	longest := append([]byte{0x11}, make([]byte, message.MaxFrame-1)...)
	wantLinkError(t, b.ask(longest), protocol.CodeFormat)
}

// TestNonCanonical seals encodings of P1 that mean a good one to a lax decoder.
func TestNonCanonical(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	p1 := p.Next(100)
	good := p1.Marshal() // a4 | 01 48 id | 02 4c serial | 03 18 64 | 04 01
	id, serial, rest := good[1:11], good[11:25], good[25:]
	if fmt.Sprintf("%x", rest) != "0318640401" {
		t.Fatalf("P1 is %x", good)
	}
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for name, raw := range map[string][]byte{
		"keys out of order":       join([]byte{0xA4}, serial, id, rest),
		"integer in two bytes":    join([]byte{0xA4}, id, serial, []byte{3, 0x19, 0, 0x64, 4, 1}),
		"small integer in a byte": join([]byte{0xA4}, id, serial, []byte{3, 0x18, 0x64, 4, 0x18, 1}),
		"indefinite map":          join([]byte{0xBF}, id, serial, rest, []byte{0xFF}),
		"duplicate key":           join([]byte{0xA5}, id, serial, rest, []byte{4, 1}),
		"trailing byte":           join(good, []byte{0}),
		"unknown key below 64":    join([]byte{0xA5}, id, serial, rest, []byte{9, 0}),
		"float under key 64":      join([]byte{0xA5}, id, serial, rest, []byte{0x18, 64, 0xF9, 0, 0}),
		"tag":                     join([]byte{0xA4}, id, serial, []byte{3, 0xC1, 0x18, 0x64, 4, 1}),
		"service missing":         join([]byte{0xA3}, id, serial, []byte{4, 1}),
		"empty":                   {},
		"array":                   {0x80},
	} {
		t.Run(name, func(t *testing.T) {
			s := must[*phone.Session](t)(p.Apply(raw))
			b.changes(nothing, func() { wantLinkError(t, b.ask(s.M1), protocol.CodeFormat) })
		})
	}
	t.Run("unknown key from 64 is ignored", func(t *testing.T) {
		s := must[*phone.Session](t)(p.Apply(join([]byte{0xA5}, id, serial, rest, []byte{0x18, 64, 0})))
		if err := s.Open(b.ask(s.M1)); err != nil || s.P2.Code != 0 {
			t.Errorf("code %d, %v", uint8(s.P2.Code), err)
		}
	})
}

// TestChallenges: what the appliance asks for, or refuses before the user is asked.
func TestChallenges(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	const (
		one   = protocol.FactorSignature
		two   = one | protocol.FactorPassword
		three = two | protocol.FactorUV
		four  = three | protocol.FactorSecondApprover
	)
	euro := func(minor uint64) *message.Proposal {
		return &message.Proposal{Amount: &protocol.Amount{Minor: minor, Currency: "EUR"}}
	}
	for _, c := range []struct {
		name string
		p1   func(*message.P1)
		want message.P2 // code, or level and factors
	}{
		{"service not accepted by the device", func(p *message.P1) { p.Service = 101 }, message.P2{Code: protocol.CodeService}},
		{"service without a meaning", func(p *message.P1) { p.Service = 1 }, message.P2{Code: protocol.CodeService}},
		{"co-approval of nothing", func(p *message.P1) { p.Service = 3 }, message.P2{Code: protocol.CodeService}},
		{"level that does not exist", func(p *message.P1) { p.Level = 9 }, message.P2{Code: protocol.CodeLevel}},
		{"level 0", func(p *message.P1) { p.Level = 0 }, message.P2{Code: protocol.CodeLevel}},
		{"dry run", func(p *message.P1) { p.Service = 0 }, message.P2{Level: 1, Factors: one}},
		{"status of a serial", func(p *message.P1) { p.Service, p.Asked = 2, &p.Serial }, message.P2{Level: 1, Factors: one}},
		{"just below level 2", func(p *message.P1) { p.Service, p.Proposal = 200, euro(4999) }, message.P2{Level: 1, Factors: one}},
		{"level 2 asked for", func(p *message.P1) { p.Level = 2 }, message.P2{Level: 2, Factors: two}},
		{"level 2 by amount", func(p *message.P1) { p.Service, p.Proposal = 200, euro(5000) }, message.P2{Level: 2, Factors: two}},
		{"just below level 4", func(p *message.P1) { p.Service, p.Proposal = 200, euro(999_999) }, message.P2{Level: 2, Factors: two}},
		{"level 3 by policy", func(p *message.P1) { p.Service = 300 }, message.P2{Level: 3, Factors: three}},
		{"level 4 asked for", func(p *message.P1) { p.Level = 4 }, message.P2{Level: 4, Factors: four}},
		{"level 4 by amount", func(p *message.P1) { p.Service, p.Proposal = 200, euro(1_000_000) }, message.P2{Level: 4, Factors: four}},
		{"largest amount", func(p *message.P1) { p.Service, p.Proposal = 200, euro(protocol.MaxMinor) }, message.P2{Level: 4, Factors: four}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p1 := p.Next(100)
			c.p1(&p1)
			b.changes(nothing, func() {
				got := b.challenge(b.link(), p, p1).P2
				if got.Code != c.want.Code || got.Level != c.want.Level || got.Factors != c.want.Factors {
					t.Errorf("code %d, level %d, %v: want %d, %d, %v", uint8(got.Code), uint8(got.Level), got.Factors,
						uint8(c.want.Code), uint8(c.want.Level), c.want.Factors)
				}
			})
		})
	}
}
