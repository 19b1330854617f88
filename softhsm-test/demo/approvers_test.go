package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
)

// knows types the right password once.
func knows(name string) person { return person{name, []string{right(name)}} }

// approve says yes to what waits at the relay.
func (s *stage) approve(ctx context.Context, name string, want int) answer {
	return s.by(ctx, knows(name), want, "approve", "--link", s.wire.Link(), "--yes")
}

// last names a phone's newest authorization.
const last = "--last"

// became asks what became of an authorization: its serial, or last.
func (s *stage) became(ctx context.Context, name string, want int, which string) answer {
	return s.client(ctx, name, want, "status", which, "--link", s.wire.Link())
}

func (s *stage) secondPerson(ctx context.Context) {
	s.enrolWith(ctx, "frank", []string{"approver"}, "--uv")
	before := harness.Must(s.Acts())
	a := s.pay(ctx, knows("dora"), unknown, "10000.00 EUR")
	s.demand(a.Result == "pending" && a.Code == protocol.CodePending, "%s, code %d", a.Result, uint8(a.Code))
	after := harness.Must(s.Acts())
	s.demand(len(after) == len(before), "%d acts before the second person", len(after)-len(before))
	a = s.approve(ctx, "frank", approved)
	s.demand(a.Amount == "10000.00 EUR" && a.Level == 4, "frank approved %q at level %d", a.Amount, a.Level)
	s.lastAct(harness.Act{Service: 200, Level: 4, Factors: []string{"signature", "password", "uv", "second-approver"}})
	a = s.became(ctx, "dora", approved, last)
	s.demand(a.Result == "approved", "dora is told %q", a.Result)
}

func (s *stage) sameTwice(ctx context.Context) {
	a := s.pay(ctx, knows("frank"), unknown, "11000.00 EUR")
	s.franks = a.Serial
	a = s.approve(ctx, "frank", denied)
	s.demand(a.Code == protocol.CodeOwnApproval, "code %d", uint8(a.Code))
}

func (s *stage) withoutRole(ctx context.Context) {
	s.enrolWith(ctx, "grace", []string{"approver"}, "--uv")
	s.Say("   Dora has all that it takes, but not the role:")
	a := s.approve(ctx, "dora", denied)
	s.demand(a.Code == protocol.CodePolicy, "code %d", uint8(a.Code))
	a = s.became(ctx, "frank", unknown, s.franks)
	s.demand(a.Result == "pending", "frank is told %q", a.Result)
	s.client(ctx, "grace", denied, "approve", "--link", s.wire.Link(), "--refuse")
	a = s.became(ctx, "frank", denied, s.franks)
	s.demand(a.Result == "denied" && a.Code == protocol.CodeUserRefused, "frank is told %q, code %d", a.Result, uint8(a.Code))
}

// jammed pays 30,000.00 EUR three times, at a machine that jams on the first.
func (s *stage) jammed(ctx context.Context) {
	atm := s.openMachine(ctx, harness.MachineConfig{Name: "atm", Keys: "accept = [200]"})
	defer stop(atm)
	harness.Do(atm.Jam(true))
	first := s.withdraw(ctx, atm)
	s.reported(ctx, "atm")
	told := s.became(ctx, "dora", approved, first.Serial)
	s.demand(told.Performed != nil && !*told.Performed, "dora is told that it was paid, or nothing")
	s.Say("   dora's phone says that the machine did not act")
	s.keep(ctx)
	harness.Do(atm.Jam(false))
	s.withdraw(ctx, atm)
	if harness.Break() == "limit" {
		s.Say("   (BREAK=limit: what the payment was charged is forgotten: the record is put back in the database)")
		s.putBack(ctx)
	}
	a := s.payAt(ctx, atm.Link, knows("dora"), denied, "30000.00 EUR")
	s.demand(a.Code == protocol.CodeLimit, "code %d", uint8(a.Code))
	acts := harness.Must(atm.Acts())
	s.demand(len(acts) == 1, "the machine paid %d times", len(acts))
}

// withdraw is 30,000.00 EUR for dora, approved by frank.
func (s *stage) withdraw(ctx context.Context, atm *harness.Machine) answer {
	a := s.payAt(ctx, atm.Link, knows("dora"), unknown, "30000.00 EUR")
	s.by(ctx, knows("frank"), approved, "approve", "--link", atm.Link, "--yes")
	return a
}

// reported waits for a machine's word that it did not perform.
func (s *stage) reported(ctx context.Context, name string) {
	err := harness.Until(ctx, "the report of "+name, func() (bool, error) {
		records, err := s.Records(ctx)
		if err != nil {
			return false, err
		}
		for _, r := range slices.Backward(records) {
			if r.Kind == "outcome" && r.Subject == "device/"+name {
				return true, performed(r.Fields["performed"])
			}
		}
		return false, nil
	})
	if err == nil {
		s.Say("   the machine has reported that it did not pay")
	}
	harness.Do(err)
}

func performed(v any) error {
	if v != false {
		return fmt.Errorf("the machine says performed: %v", v)
	}
	return nil
}

// database is the appliance's.
func (s *stage) database() string { return filepath.Join(s.Config.Dir, "countersign.db") }

// pay asks at the relay for a payment, says yes and types these passwords.
func (s *stage) pay(ctx context.Context, p person, want int, amount string) answer {
	return s.payAt(ctx, s.wire.Link(), p, want, amount)
}

func (s *stage) payAt(ctx context.Context, link string, p person, want int, amount string) answer {
	return s.by(ctx, p, want, "authorize", "--link", link, "--service", "200", "--amount", amount, "--yes")
}

// dora types these passwords on her phone.
func dora(types ...string) person { return person{"dora", types} }

func (s *stage) password(ctx context.Context) {
	s.enrolWith(ctx, "dora", nil, "--uv")
	a := s.pay(ctx, dora(right("dora")), approved, "60.00 EUR")
	s.demand(a.Level == 2 && a.Amount == "60.00 EUR", "level %d, amount %q", a.Level, a.Amount)
	s.traffic()
	s.lastAct(harness.Act{Service: 200, Level: 2, Factors: []string{"signature", "password"}})
}

// lastAct compares what the relay's hook was told last.
func (s *stage) lastAct(want harness.Act) {
	acts, err := s.Acts()
	if err != nil || len(acts) == 0 {
		s.blame("no act")
		harness.Do(err)
		return
	}
	act := acts[len(acts)-1]
	s.Say("           the hook was told: service %d, level %d, %s", act.Service, act.Level, strings.Join(act.Factors, " and "))
	s.demand(act.Service == want.Service && act.Level == want.Level && slices.Equal(act.Factors, want.Factors), "act %+v", act)
}

func (s *stage) mistyped(ctx context.Context) {
	a := s.pay(ctx, dora(wrong, right("dora")), approved, "61.00 EUR")
	told := "wrong password, 2 tries left"
	s.Say("           told in between: %s", told)
	s.demand(strings.Contains(a.told, told), "she was told %s", a.told)
	client := harness.Must(s.Client(ctx, "dora"))
	s.demand(client.Password.Wrong == 0, "the appliance still counts %d wrong ones", client.Password.Wrong)
}

func (s *stage) locked(ctx context.Context) {
	s.keep(ctx)
	a := s.pay(ctx, dora(wrong, wrong, wrong), denied, "62.00 EUR")
	s.demand(a.Code == protocol.CodePassword, "code %d", uint8(a.Code))
	if harness.Break() == "guard" {
		s.Say("   (BREAK=guard: the count of wrong passwords is put back in the database)")
		s.putBack(ctx)
	}
	a = s.pay(ctx, dora(wrong, wrong), denied, "62.00 EUR")
	s.demand(a.Code == protocol.CodeLocked && a.RetryS > 20 && a.RetryS <= 30, "code %d, try again in %d s", uint8(a.Code), a.RetryS)
	a = s.pay(ctx, dora(right("dora")), denied, "62.00 EUR")
	s.demand(a.Code == protocol.CodeLocked && a.RetryS > 0, "code %d, try again in %d s", uint8(a.Code), a.RetryS)
	s.ctl(ctx, "client", "unlock", "dora")
	s.pay(ctx, dora(right("dora")), approved, "62.00 EUR")
}

func (s *stage) vault(ctx context.Context) {
	s.enrolWith(ctx, "emil", nil)
	vault := []string{"authorize", "--link", s.wire.Link(), "--service", "vault.open=300", "--yes"}
	a := s.by(ctx, person{"emil", []string{right("emil")}}, denied, vault...)
	s.demand(strings.Contains(a.told, "cannot provide factor uv"), "he was told %s", a.told)
	a = s.by(ctx, dora(right("dora")), approved, vault...)
	s.demand(a.Level == 3, "level %d", a.Level)
	s.lastAct(harness.Act{Service: 300, Level: 3, Factors: []string{"signature", "password", "uv"}})
}

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
	s.wire.Next(link.Rule{Kind: message.KindM4, Action: link.Cut})
	s.authorize(ctx, "alice", unknown, "100")
	s.killed(ctx)
	a := s.client(ctx, "alice", unknown, "resume", "--link", s.wire.Link())
	s.demand(a.Result == "unknown", "result %q", a.Result)
	a = s.became(ctx, "alice", approved, last)
	s.demand(a.Result == "approved", "result %q", a.Result)
	s.Say("   The next time it is the countersignature that is lost. Asking makes that final:")
	s.wire.Next(link.Rule{Kind: message.KindM3, Action: link.Cut})
	s.authorize(ctx, "alice", unknown, "100")
	m1 := s.wire.Last(message.KindM1)
	a = s.became(ctx, "alice", denied, last)
	s.demand(a.Result == "denied" && a.Code == protocol.CodeExpired, "result %q, code %d", a.Result, uint8(a.Code))
	late := harness.Must(s.wire.Replay(ctx, s.firstAfter(m1)))
	me := harness.Must(message.ParseLinkError(late))
	s.Say("   attacker: the countersignature that he kept comes late: code %d (%s)", uint8(me.Code), me.Code)
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
func (s *stage) killed(ctx context.Context) {
	harness.Do(s.KillAll(ctx))
	harness.Do(s.Restart(ctx))
	s.wire.Retarget(s.Link)
	s.Say("   kill -9, and started again on the same directory")
}
