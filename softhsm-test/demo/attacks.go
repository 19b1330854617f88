package main

import (
	"bytes"
	"context"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/tamper"
)

// alteredBit alters M1 to M4, one after the other.
func (s *stage) alteredBit(ctx context.Context) error {
	for _, step := range []struct {
		name string
		kind byte
		exit int
		then bool // the phone asks again
	}{
		{"M1: the appliance cannot open it", message.KindM1, failed, false},
		{"M2: the phone cannot open it, and signs nothing", message.KindM2, notAuthentic, false},
		{"M3: the appliance cannot open it; the phone sends it again", message.KindM3, unknown, true},
		{"M4: the door is open, and the phone asks what became of it", message.KindM4, unknown, true},
	} {
		s.say("   %s", step.name)
		if s.broken == "bit" && step.kind == message.KindM2 {
			s.say("   (BREAK=bit: the phone is given the challenge as if nothing had been altered)")
		} else {
			s.wire.Next(tamper.Rule{Kind: step.kind, Action: tamper.Alter, Bit: -1})
		}
		if _, err := s.authorize(ctx, "alice", step.exit, "100"); err != nil {
			return err
		}
		if !step.then {
			continue
		}
		if err := s.resume(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) resume(ctx context.Context) error {
	a, err := s.client(ctx, "alice", approved, "resume", "--link", s.wire.Link())
	s.demand(a.Result == "approved", "result %q", a.Result)
	return err
}

// replay loses M4, lets the phone resume, and then plays the recording.
func (s *stage) replay(ctx context.Context) error {
	if err := s.keep(ctx); err != nil {
		return err
	}
	s.wire.Next(tamper.Rule{Kind: message.KindM4, Action: tamper.Cut})
	if _, err := s.authorize(ctx, "alice", unknown, "100"); err != nil {
		return err
	}
	lost := s.wire.Last(message.KindM4)
	if err := s.resume(ctx); err != nil {
		return err
	}
	if s.broken == "replay" {
		s.say("   (BREAK=replay: the appliance's database is put back to before the authorization)")
		if err := s.putBack(ctx, `DELETE FROM decision WHERE ref = (SELECT max(ref) FROM decision)`); err != nil {
			return err
		}
	}
	m3 := s.wire.Last(message.KindM3)
	seen := [][]byte{lost, s.wire.Last(message.KindM4)}
	for range 3 {
		m4, err := s.wire.Replay(ctx, m3)
		if err != nil {
			return err
		}
		s.demand(len(m4) == len(lost) && m4[0] == lost[0], "the replay is answered by %x", m4)
		for _, earlier := range seen {
			s.demand(!bytes.Equal(m4, earlier), "an M4 came twice: %x", m4)
		}
		seen = append(seen, m4)
	}
	s.say("   attacker: M3 played 3 times; each time an M4 of %d bytes, each sealed anew", len(lost))
	return nil
}

// suspension suspends alice and resumes her.
func (s *stage) suspension(ctx context.Context) error {
	if s.broken == "suspend" {
		s.say("   (BREAK=suspend: the suspension is lost)")
	} else if err := s.ctl(ctx, "client", "suspend", "alice"); err != nil {
		return err
	}
	a, err := s.authorize(ctx, "alice", denied, "100")
	if err != nil {
		return err
	}
	s.demand(a.Code == protocol.CodeSuspended, "code %d", uint8(a.Code))
	if err := s.ctl(ctx, "client", "resume", "alice"); err != nil {
		return err
	}
	_, err = s.authorize(ctx, "alice", approved, "100")
	return err
}

// sizes are those of the recorded messages, in order.
func (s *stage) sizes() (sizes []int) {
	for _, f := range s.wire.Frames() {
		sizes = append(sizes, len(f.Message))
	}
	return sizes
}

var euros12 = rig.Amount{Minor: 1200, Currency: "EUR"}
