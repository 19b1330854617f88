package demo

import (
	"context"
	"strings"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
)

const learns = "the device learns who you are"

// strict pays at a till that verifies the countersignature itself.
func (s *stage) strict(ctx context.Context) {
	till := s.openMachine(ctx, harness.MachineConfig{Name: "till", Keys: "accept = [200]\nstrict = true"})
	defer stop(till)
	a := s.payAt(ctx, till.Link, knows("dora"), approved, "63.00 EUR")
	s.Say("           her phone says: %s", learns)
	s.demand(strings.Contains(a.told, learns), "she was told %s", a.told)
	acts := harness.Must(till.Acts())
	s.demand(len(acts) == 1 && acts[0].Amount != nil && *acts[0].Amount == harness.Amount{Minor: 6300, Currency: "EUR"}, "the till's hook was told %+v", acts)
	s.evidence(ctx)
}

// evidence puts a decision without evidence before a strict device.
func (s *stage) evidence(ctx context.Context) {
	code := harness.Must(s.Invite(ctx, "device", "bare"))
	d := harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, code))
	defer d.Close()
	check, decision := s.approvedAt(ctx, "heidi", d)
	if check.Strict = true; harness.Break() == "evidence" {
		s.Say("   (BREAK=evidence: the device does not look for it)")
		check.Strict = false
	}
	_, err := check.Verify(decision)
	got, _ := protocol.CodeOf(err)
	s.Say("           a decision that comes without the countersignature: code %d (%s)", uint8(got), got)
	s.demand(got == protocol.CodeFormat, "a strict device takes a decision without evidence")
}

// untold loses an answer and then everything that could repeat it.
func (s *stage) untold(ctx context.Context) {
	s.wire.Next(link.Rule{Kind: protocol.KindM4, Action: link.Cut})
	s.authorize(ctx, "alice", unknown, "100")
	s.killed(ctx)
	a := s.client(ctx, "alice", unknown, "resume", "--link", s.wire.Link())
	s.demand(a.Result == "unknown", "result %q", a.Result)
	a = s.became(ctx, "alice", approved, last)
	s.demand(a.Result == "approved", "result %q", a.Result)
	s.Say("   The next time it is the countersignature that is lost. Asking makes that final:")
	s.wire.Next(link.Rule{Kind: protocol.KindM3, Action: link.Cut})
	s.authorize(ctx, "alice", unknown, "100")
	m1 := s.wire.Last(protocol.KindM1)
	a = s.became(ctx, "alice", denied, last)
	s.demand(a.Result == "denied" && a.Code == protocol.CodeExpired, "result %q, code %d", a.Result, uint8(a.Code))
	late := harness.Must(s.wire.Replay(ctx, s.firstAfter(m1)))
	me := harness.Must(protocol.ParseLinkError(late))
	s.Say("   attacker: the countersignature that he kept comes late: code %d (%s)", uint8(me.Code), me.Code)
}

// firstAfter is the M3 that was recorded first after an M1.
func (s *stage) firstAfter(m1 []byte) []byte {
	seen := false
	for _, f := range s.wire.Frames() {
		seen = seen || string(f.Message) == string(m1)
		if seen && f.Kind() == protocol.KindM3 {
			return f.Message
		}
	}
	return nil
}

// killed kills the appliance without a word to it, and starts it again.
func (s *stage) killed(ctx context.Context) {
	harness.Do(s.KillAll(ctx))
	harness.Do(s.Restart(ctx))
	s.wire.Retarget(s.Link)
	s.Say("   kill -9, and started again on the same directory")
}
