package main

import (
	"context"
	"strings"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/device"
	"countersign/softhsm-test/rig/tamper"
)

const learns = "the device learns who you are"

// strict pays at a till that verifies the countersignature itself.
func (s *stage) strict(ctx context.Context) (err error) {
	till, err := s.openMachine(ctx, rig.MachineConfig{Name: "till", Keys: "accept = [200]\nstrict = true"})
	if err != nil {
		return err
	}
	defer stop(till, &err)
	a, err := s.payAt(ctx, till.Link, knows("dora"), approved, "63.00 EUR")
	if err != nil {
		return err
	}
	s.say("           her phone says: %s", learns)
	s.demand(strings.Contains(a.told, learns), "she was told %s", a.told)
	acts, err := till.Acts()
	if err != nil {
		return err
	}
	s.demand(len(acts) == 1 && acts[0].Amount != nil && *acts[0].Amount == rig.Amount{Minor: 6300, Currency: "EUR"}, "the till's hook was told %+v", acts)
	return s.evidence(ctx)
}

// evidence puts a decision without evidence before a strict device.
func (s *stage) evidence(ctx context.Context) error {
	code, err := s.Invite(ctx, "device", "bare")
	if err != nil {
		return err
	}
	d, err := device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, code)
	if err != nil {
		return err
	}
	defer d.Close()
	check, decision, err := s.approvedAt(ctx, "heidi", d)
	if err != nil {
		return err
	}
	if check.Strict = true; s.broken == "evidence" {
		s.say("   (BREAK=evidence: the device does not look for it)")
		check.Strict = false
	}
	_, err = check.Verify(decision)
	got, _ := protocol.CodeOf(err)
	s.say("           a decision that comes without the countersignature: code %d (%s)", uint8(got), got)
	s.demand(got == protocol.CodeFormat, "a strict device takes a decision without evidence")
	return nil
}

// untold loses an answer and then everything that could repeat it.
func (s *stage) untold(ctx context.Context) error {
	s.wire.Next(tamper.Rule{Kind: message.KindM4, Action: tamper.Cut})
	if _, err := s.authorize(ctx, "alice", unknown, "100"); err != nil {
		return err
	}
	if err := s.killed(ctx); err != nil {
		return err
	}
	a, err := s.client(ctx, "alice", unknown, "resume", "--link", s.wire.Link())
	if err != nil {
		return err
	}
	s.demand(a.Result == "unknown", "result %q", a.Result)
	if a, err = s.became(ctx, "alice", approved, last); err != nil {
		return err
	}
	s.demand(a.Result == "approved", "result %q", a.Result)
	s.say("   The next time it is the countersignature that is lost. Asking makes that final:")
	s.wire.Next(tamper.Rule{Kind: message.KindM3, Action: tamper.Cut})
	if _, err := s.authorize(ctx, "alice", unknown, "100"); err != nil {
		return err
	}
	m1 := s.wire.Last(message.KindM1)
	if a, err = s.became(ctx, "alice", denied, last); err != nil {
		return err
	}
	s.demand(a.Result == "denied" && a.Code == protocol.CodeExpired, "result %q, code %d", a.Result, uint8(a.Code))
	late, err := s.wire.Replay(ctx, s.firstAfter(m1))
	if err != nil {
		return err
	}
	me, err := message.ParseLinkError(late)
	s.say("   attacker: the countersignature that he kept comes late: code %d (%s)", uint8(me.Code), me.Code)
	return err
}

// firstAfter is the M3 that was recorded first after an M1.
func (s *stage) firstAfter(m1 []byte) []byte {
	seen := false
	for _, f := range s.wire.Frames() {
		seen = seen || string(f.Message) == string(m1)
		if seen && f.Kind() == message.KindM3 {
			return f.Message
		}
	}
	return nil
}

// killed kills the appliance without a word to it, and starts it again.
func (s *stage) killed(ctx context.Context) error {
	if err := s.KillAll(ctx); err != nil {
		return err
	}
	if err := s.Restart(ctx); err != nil {
		return err
	}
	s.wire.Retarget(s.Link)
	s.say("   kill -9, and started again on the same directory")
	return nil
}
