package demo

import (
	"bytes"
	"context"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// alteredBit alters M1 to M4, one after the other.
func (s *stage) alteredBit(ctx context.Context) {
	for _, step := range []struct {
		name string
		kind byte
		exit int
		then bool // the phone asks again
	}{
		{"M1: the appliance cannot open it", protocol.KindM1, failed, false},
		{"M2: the phone cannot open it, and signs nothing", protocol.KindM2, notAuthentic, false},
		{"M3: the appliance cannot open it; the phone sends it again", protocol.KindM3, unknown, true},
		{"M4: the door is open, and the phone asks what became of it", protocol.KindM4, unknown, true},
	} {
		s.Say("   %s", step.name)
		if harness.Break() == "bit" && step.kind == protocol.KindM2 {
			s.Say("   (BREAK=bit: the phone is given the challenge as if nothing had been altered)")
		} else {
			s.wire.Next(link.Rule{Kind: step.kind, Action: link.Alter, Bit: -1})
		}
		s.authorize(ctx, "alice", step.exit, "100")
		if !step.then {
			continue
		}
		s.resume(ctx)
	}
}

func (s *stage) resume(ctx context.Context) {
	a := s.client(ctx, "alice", approved, "resume", "--link", s.wire.Link())
	s.demand(a.Result == "approved", "result %q", a.Result)
}

// replay loses M4, lets the phone resume, and then plays the recording.
func (s *stage) replay(ctx context.Context) {
	s.keep(ctx)
	s.wire.Next(link.Rule{Kind: protocol.KindM4, Action: link.Cut})
	s.authorize(ctx, "alice", unknown, "100")
	lost := s.wire.Last(protocol.KindM4)
	s.resume(ctx)
	if harness.Break() == "replay" {
		s.Say("   (BREAK=replay: the appliance's database is put back to before the authorization)")
		s.putBack(ctx, `DELETE FROM decision WHERE ref = (SELECT max(ref) FROM decision)`)
	}
	m3 := s.wire.Last(protocol.KindM3)
	seen := [][]byte{lost, s.wire.Last(protocol.KindM4)}
	for range 3 {
		m4 := harness.Must(s.wire.Replay(ctx, m3))
		s.demand(len(m4) == len(lost) && m4[0] == lost[0], "the replay is answered by %x", m4)
		for _, earlier := range seen {
			s.demand(!bytes.Equal(m4, earlier), "an M4 came twice: %x", m4)
		}
		seen = append(seen, m4)
	}
	s.Say("   attacker: M3 played 3 times; each time an M4 of %d bytes, each sealed anew", len(lost))
}

// suspension suspends alice and resumes her.
func (s *stage) suspension(ctx context.Context) {
	if harness.Break() == "suspend" {
		s.Say("   (BREAK=suspend: the suspension is lost)")
	} else {
		s.ctl(ctx, "client", "suspend", "alice")
	}
	a := s.authorize(ctx, "alice", denied, "100")
	s.demand(a.Code == protocol.CodeSuspended, "code %d", uint8(a.Code))
	s.ctl(ctx, "client", "resume", "alice")
	s.authorize(ctx, "alice", approved, "100")
}

// sizes returns the lengths of the recorded messages, in order.
func (s *stage) sizes() (sizes []int) {
	for _, f := range s.wire.Frames() {
		sizes = append(sizes, len(f.Message))
	}
	return sizes
}

var euros12 = harness.Amount{Minor: 1200, Currency: "EUR"}
