package main

import (
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/device"
	"countersign/softhsm-test/rig/phone"
)

func (s *stage) otherOrder(ctx context.Context) (err error) {
	cents := euros12.Minor
	if s.broken == "order" {
		s.say("   (BREAK=order: the kiosk's order is for 9.00 EUR)")
		cents = 900
	}
	order := fmt.Sprintf("[order]\nsource = \"static\"\nstatic = { service = 200, amount_minor = %d, currency = \"EUR\", text = \"1 coffee\" }\n", cents)
	k, err := s.openMachine(ctx, rig.MachineConfig{Name: "kiosk", Tables: order})
	if err != nil {
		return err
	}
	defer stop(k, &err)
	for _, ask := range []struct {
		what string
		exit int
		code protocol.Code
		args []string
	}{
		{"Alice asks for a door; the kiosk has no such order:", denied, protocol.CodeService, []string{"100"}},
		{"She was told 9.00 EUR, the kiosk orders 12.00 EUR:", denied, protocol.CodePolicy, []string{"200", "--amount", "9.00 EUR"}},
		{"They agree:", approved, 0, []string{"200", "--amount", "12.00 EUR"}},
	} {
		s.say("   %s", ask.what)
		a, err := s.client(ctx, "alice", ask.exit, append([]string{"authorize", "--link", k.Link, "--yes", "--service"}, ask.args...)...)
		if err != nil {
			return err
		}
		s.demand(a.Code == ask.code, "code %d, wanted %d", uint8(a.Code), uint8(ask.code))
	}
	acts, err := rig.ReadActs(k.Hooklog)
	if err != nil {
		return err
	}
	s.demand(len(acts) == 1 && acts[0].Amount != nil && *acts[0].Amount == euros12, "the kiosk's hook was told %+v", acts)
	return s.liar(ctx)
}

// liar is a device that gets a true decision for 12.00 EUR and shows it to others.
func (s *stage) liar(ctx context.Context) error {
	s.say("   A device that lies gets Carla's 12.00 EUR approved, and shows the decision around:")
	code, err := s.Invite(ctx, "device", "liar")
	if err != nil {
		return err
	}
	d, err := device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, code)
	if err != nil {
		return err
	}
	defer d.Close()
	check, decision, err := s.approvedAt(ctx, "carla", d)
	if err != nil {
		return err
	}
	till, other, later := check, check, check
	till.Amount = &protocol.Amount{Minor: 4900, Currency: "EUR"}
	other.Device[0] ^= 1
	later.Nonce = device.NewNonce()
	for _, c := range []struct {
		what  string
		check receipt.Check
		code  protocol.Code
	}{
		{"for its own order", check, 0},
		{"for an order of 49.00 EUR", till, protocol.CodePolicy},
		{"at another device", other, protocol.CodeDevice},
		{"for its next customer", later, protocol.CodeReplayed},
	} {
		_, err := c.check.Verify(decision)
		got, _ := protocol.CodeOf(err)
		verdict := "taken"
		if err != nil {
			verdict = fmt.Sprintf("not acted on, code %d (%s)", uint8(got), got)
		}
		s.say("           %-26s %s", c.what, verdict)
		s.demand((err == nil) == (c.code == 0) && got == c.code, "%s: %v, wanted code %d", c.what, err, uint8(c.code))
	}
	return nil
}

// approvedAt runs an authorization of 12.00 EUR for a new phone at a device of the
// rig.
func (s *stage) approvedAt(ctx context.Context, name string, d *device.Device) (check receipt.Check, decision []byte, err error) {
	order := deviceapi.Order{Services: []protocol.Service{200}, Amount: &protocol.Amount{Minor: euros12.Minor, Currency: euros12.Currency}}
	code, err := s.Invite(ctx, "client", name)
	if err != nil {
		return check, nil, err
	}
	p, err := phone.Enrol(ctx, s.URL, code)
	if err != nil {
		return check, nil, err
	}
	p1 := p.Next(200)
	session, err := p.Apply(p1.Marshal())
	if err != nil {
		return check, nil, err
	}
	nonce := device.NewNonce()
	granted, err := d.Apply(ctx, deviceapi.ApplyRequest{M1: session.M1, Order: order, Link: deviceapi.LinkWire, Nonce: nonce})
	if err != nil {
		return check, nil, err
	}
	if err := session.Open(granted.M2); err != nil {
		return check, nil, err
	}
	m3, err := session.Countersign(ctx, protocol.Approve)
	if err != nil {
		return check, nil, err
	}
	answer, err := d.Countersign(ctx, deviceapi.CountersignRequest{Handle: granted.Handle, M3: m3})
	if err != nil {
		return check, nil, err
	}
	check, err = d.Check(nonce, granted.M2)
	check.Services, check.Amount = order.Services, order.Amount
	return check, answer.Decision, err
}
