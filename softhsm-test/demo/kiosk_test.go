package demo

import (
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

func (s *stage) otherOrder(ctx context.Context) {
	cents := euros12.Minor
	if harness.Break() == "order" {
		s.Say("   (BREAK=order: the kiosk's order is for 9.00 EUR)")
		cents = 900
	}
	order := fmt.Sprintf("[order]\nsource = \"static\"\nstatic = { service = 200, amount_minor = %d, currency = \"EUR\", text = \"1 coffee\" }\n", cents)
	k := s.openMachine(ctx, harness.MachineConfig{Name: "kiosk", Tables: order})
	defer stop(k)
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
		s.Say("   %s", ask.what)
		a := s.client(ctx, "alice", ask.exit, append([]string{"authorize", "--link", k.Link, "--yes", "--service"}, ask.args...)...)
		s.demand(a.Code == ask.code, "code %d, wanted %d", uint8(a.Code), uint8(ask.code))
	}
	acts := harness.Must(harness.ReadActs(k.Hooklog))
	s.demand(len(acts) == 1 && acts[0].Amount != nil && *acts[0].Amount == euros12, "the kiosk's hook was told %+v", acts)
	s.liar(ctx)
}

// liar is a device that gets a true decision for 12.00 EUR and shows it to others.
func (s *stage) liar(ctx context.Context) {
	s.Say("   A device that lies gets Carla's 12.00 EUR approved, and shows the decision around:")
	code := harness.Must(s.Invite(ctx, "device", "liar"))
	d := harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, code))
	defer d.Close()
	check, decision := s.approvedAt(ctx, "carla", d)
	till, other, later := check, check, check
	till.Amount = &protocol.Amount{Minor: 4900, Currency: "EUR"}
	other.Device[0] ^= 1
	later.Nonce = device.NewNonce()
	for _, c := range []struct {
		what  string
		check protocol.DecisionCheck
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
		s.Say("           %-26s %s", c.what, verdict)
		s.demand((err == nil) == (c.code == 0) && got == c.code, "%s: %v, wanted code %d", c.what, err, uint8(c.code))
	}
}

// approvedAt runs an authorization of 12.00 EUR for a new phone at a device of the
// rig.
func (s *stage) approvedAt(ctx context.Context, name string, d *device.Device) (check protocol.DecisionCheck, decision []byte) {
	order := protocol.Order{Services: []protocol.Service{200}, Amount: &protocol.Amount{Minor: euros12.Minor, Currency: euros12.Currency}}
	code := harness.Must(s.Invite(ctx, "client", name))
	p := harness.Must(phone.Enrol(ctx, s.URL, code))
	p1 := p.Next(200)
	session := harness.Must(p.Apply(p1.Marshal()))
	nonce := device.NewNonce()
	granted := harness.Must(d.Apply(ctx, protocol.ApplyRequest{M1: session.M1, Order: order, Link: protocol.LinkWire, Nonce: nonce}))
	harness.Do(session.Open(granted.M2))
	m3 := harness.Must(session.Countersign(ctx, protocol.Approve))
	answer := harness.Must(d.Countersign(ctx, protocol.CountersignRequest{Handle: granted.Handle, M3: m3}))
	check = harness.Must(d.Check(nonce, granted.M2))
	check.Services, check.Amount = order.Services, order.Amount
	return check, answer.Decision
}
