package demo

import (
	"context"
	"fmt"
	"slices"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
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
	s.demand(a.Code == protocol.CodePolicy, "code %d", uint8(a.Code))
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
	s.withdraw(ctx, atm)
	s.reported(ctx, "atm")
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
func (s *stage) withdraw(ctx context.Context, atm *harness.Machine) {
	s.payAt(ctx, atm.Link, knows("dora"), unknown, "30000.00 EUR")
	s.by(ctx, knows("frank"), approved, "approve", "--link", atm.Link, "--yes")
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
