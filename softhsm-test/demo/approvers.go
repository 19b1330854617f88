package main

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
func (s *stage) approve(ctx context.Context, name string, want int) (answer, error) {
	return s.by(ctx, knows(name), want, "approve", "--link", s.wire.Link(), "--yes")
}

// last names a phone's newest authorization.
const last = "--last"

// became asks what became of an authorization: its serial, or last.
func (s *stage) became(ctx context.Context, name string, want int, which string) (answer, error) {
	return s.client(ctx, name, want, "status", which, "--link", s.wire.Link())
}

func (s *stage) secondPerson(ctx context.Context) error {
	if err := s.enrolWith(ctx, "frank", []string{"approver"}, "--uv"); err != nil {
		return err
	}
	before, err := s.Acts()
	if err != nil {
		return err
	}
	a, err := s.pay(ctx, knows("dora"), unknown, "10000.00 EUR")
	if err != nil {
		return err
	}
	s.demand(a.Result == "pending" && a.Code == protocol.CodePending, "%s, code %d", a.Result, uint8(a.Code))
	after, err := s.Acts()
	if err != nil {
		return err
	}
	s.demand(len(after) == len(before), "%d acts before the second person", len(after)-len(before))
	if a, err = s.approve(ctx, "frank", approved); err != nil {
		return err
	}
	s.demand(a.Amount == "10000.00 EUR" && a.Level == 4, "frank approved %q at level %d", a.Amount, a.Level)
	if err := s.lastAct(harness.Act{Service: 200, Level: 4, Factors: []string{"signature", "password", "uv", "second-approver"}}); err != nil {
		return err
	}
	a, err = s.became(ctx, "dora", approved, last)
	s.demand(a.Result == "approved", "dora is told %q", a.Result)
	return err
}

func (s *stage) sameTwice(ctx context.Context) error {
	a, err := s.pay(ctx, knows("frank"), unknown, "11000.00 EUR")
	if err != nil {
		return err
	}
	s.franks = a.Serial
	a, err = s.approve(ctx, "frank", denied)
	s.demand(a.Code == protocol.CodePolicy, "code %d", uint8(a.Code))
	return err
}

func (s *stage) withoutRole(ctx context.Context) error {
	if err := s.enrolWith(ctx, "grace", []string{"approver"}, "--uv"); err != nil {
		return err
	}
	s.say("   Dora has all that it takes, but not the role:")
	a, err := s.approve(ctx, "dora", denied)
	if err != nil {
		return err
	}
	s.demand(a.Code == protocol.CodePolicy, "code %d", uint8(a.Code))
	if a, err = s.became(ctx, "frank", unknown, s.franks); err != nil {
		return err
	}
	s.demand(a.Result == "pending", "frank is told %q", a.Result)
	if _, err = s.client(ctx, "grace", denied, "approve", "--link", s.wire.Link(), "--refuse"); err != nil {
		return err
	}
	a, err = s.became(ctx, "frank", denied, s.franks)
	s.demand(a.Result == "denied" && a.Code == protocol.CodeUserRefused, "frank is told %q, code %d", a.Result, uint8(a.Code))
	return err
}

// jammed pays 30,000.00 EUR three times, at a machine that jams on the first.
func (s *stage) jammed(ctx context.Context) (err error) {
	atm, err := s.openMachine(ctx, harness.MachineConfig{Name: "atm", Keys: "accept = [200]"})
	if err != nil {
		return err
	}
	defer stop(atm, &err)
	if err := atm.Jam(true); err != nil {
		return err
	}
	if err := s.withdraw(ctx, atm); err != nil {
		return err
	}
	if err := s.reported(ctx, "atm"); err != nil {
		return err
	}
	if err := s.keep(ctx); err != nil {
		return err
	}
	if err := atm.Jam(false); err != nil {
		return err
	}
	if err := s.withdraw(ctx, atm); err != nil {
		return err
	}
	if s.broken == "limit" {
		s.say("   (BREAK=limit: what the payment was charged is forgotten: the record is put back in the database)")
		if err := s.putBack(ctx); err != nil {
			return err
		}
	}
	a, err := s.payAt(ctx, atm.Link, knows("dora"), denied, "30000.00 EUR")
	if err != nil {
		return err
	}
	s.demand(a.Code == protocol.CodeLimit, "code %d", uint8(a.Code))
	acts, err := atm.Acts()
	s.demand(len(acts) == 1, "the machine paid %d times", len(acts))
	return err
}

// withdraw is 30,000.00 EUR for dora, approved by frank.
func (s *stage) withdraw(ctx context.Context, atm *harness.Machine) error {
	if _, err := s.payAt(ctx, atm.Link, knows("dora"), unknown, "30000.00 EUR"); err != nil {
		return err
	}
	_, err := s.by(ctx, knows("frank"), approved, "approve", "--link", atm.Link, "--yes")
	return err
}

// reported waits for a machine's word that it did not perform.
func (s *stage) reported(ctx context.Context, name string) error {
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
		s.say("   the machine has reported that it did not pay")
	}
	return err
}

func performed(v any) error {
	if v != false {
		return fmt.Errorf("the machine says performed: %v", v)
	}
	return nil
}
