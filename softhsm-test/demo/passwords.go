package main

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"countersign/protocol"
	"countersign/softhsm-test/rig"
)

// database is the appliance's.
func (s *stage) database() string { return filepath.Join(s.Config.Dir, "countersign.db") }

// pay asks at the relay for a payment, says yes and types these passwords.
func (s *stage) pay(ctx context.Context, p person, want int, amount string) (answer, error) {
	return s.payAt(ctx, s.wire.Link(), p, want, amount)
}

func (s *stage) payAt(ctx context.Context, link string, p person, want int, amount string) (answer, error) {
	return s.by(ctx, p, want, "authorize", "--link", link, "--service", "200", "--amount", amount, "--yes")
}

// dora types these passwords on her phone.
func dora(types ...string) person { return person{"dora", types} }

func (s *stage) password(ctx context.Context) error {
	if err := s.enrolWith(ctx, "dora", nil, "--uv"); err != nil {
		return err
	}
	a, err := s.pay(ctx, dora(right("dora")), approved, "60.00 EUR")
	if err != nil {
		return err
	}
	s.demand(a.Level == 2 && a.Amount == "60.00 EUR", "level %d, amount %q", a.Level, a.Amount)
	s.traffic()
	return s.lastAct(rig.Act{Service: 200, Level: 2, Factors: []string{"signature", "password"}})
}

// lastAct compares what the relay's hook was told last.
func (s *stage) lastAct(want rig.Act) error {
	acts, err := s.Acts()
	if err != nil || len(acts) == 0 {
		s.blame("no act")
		return err
	}
	act := acts[len(acts)-1]
	s.say("           the hook was told: service %d, level %d, %s", act.Service, act.Level, strings.Join(act.Factors, " and "))
	s.demand(act.Service == want.Service && act.Level == want.Level && slices.Equal(act.Factors, want.Factors), "act %+v", act)
	return nil
}

func (s *stage) mistyped(ctx context.Context) error {
	a, err := s.pay(ctx, dora(wrong, right("dora")), approved, "61.00 EUR")
	if err != nil {
		return err
	}
	told := "wrong password, 2 tries left"
	s.say("           told in between: %s", told)
	s.demand(strings.Contains(a.told, told), "she was told %s", a.told)
	client, err := s.Client(ctx, "dora")
	s.demand(client.Password.Wrong == 0, "the appliance still counts %d wrong ones", client.Password.Wrong)
	return err
}

func (s *stage) locked(ctx context.Context) error {
	if err := s.keep(ctx); err != nil {
		return err
	}
	a, err := s.pay(ctx, dora(wrong, wrong, wrong), denied, "62.00 EUR")
	if err != nil {
		return err
	}
	s.demand(a.Code == protocol.CodePassword, "code %d", uint8(a.Code))
	if s.broken == "guard" {
		s.say("   (BREAK=guard: the count of wrong passwords is put back in the database)")
		if err := s.putBack(ctx); err != nil {
			return err
		}
	}
	if a, err = s.pay(ctx, dora(wrong, wrong), denied, "62.00 EUR"); err != nil {
		return err
	}
	s.demand(a.Code == protocol.CodeLocked && a.RetryS > 20 && a.RetryS <= 30, "code %d, try again in %d s", uint8(a.Code), a.RetryS)
	if a, err = s.pay(ctx, dora(right("dora")), denied, "62.00 EUR"); err != nil {
		return err
	}
	s.demand(a.Code == protocol.CodeLocked && a.RetryS > 0, "code %d, try again in %d s", uint8(a.Code), a.RetryS)
	if err := s.ctl(ctx, "client", "unlock", "dora"); err != nil {
		return err
	}
	_, err = s.pay(ctx, dora(right("dora")), approved, "62.00 EUR")
	return err
}

func (s *stage) vault(ctx context.Context) error {
	if err := s.enrolWith(ctx, "emil", nil); err != nil {
		return err
	}
	vault := []string{"authorize", "--link", s.wire.Link(), "--service", "vault.open=300", "--yes"}
	a, err := s.by(ctx, person{"emil", []string{right("emil")}}, denied, vault...)
	if err != nil {
		return err
	}
	s.demand(strings.Contains(a.told, "cannot provide factor uv"), "he was told %s", a.told)
	if a, err = s.by(ctx, dora(right("dora")), approved, vault...); err != nil {
		return err
	}
	s.demand(a.Level == 3, "level %d", a.Level)
	return s.lastAct(rig.Act{Service: 300, Level: 3, Factors: []string{"signature", "password", "uv"}})
}
