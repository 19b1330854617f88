package authorize_test

import (
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// pays approves a payment at the level that its challenge must have, and returns the transaction.
func pays(t *testing.T, p *appliancetest.Phone, minor uint64, level protocol.Level) protocol.TransactionID {
	t.Helper()
	s := p.Challenge(payment, eur(minor))
	if s.P2.Level != level {
		t.Fatalf("a payment of %d is of level %d, want %d", minor, s.P2.Level, level)
	}
	answer := s.Approve
	if level > 1 {
		answer = s.Right
	}
	a := answer()
	expect(t, a, protocol.ResultApproved, 0)
	d, err := s.Verify(a.Res.Decision, eur(minor))
	if err != nil || d.Level != level {
		t.Fatalf("decision %+v, %v", d, err)
	}
	return d.Transaction
}

// TestManySmallPayments: forty payments of 49.99 take the password as one large payment does, from
// the one on that reaches 150.00 within a day, until enough of them are a day ago.
func TestManySmallPayments(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	for n := range 40 {
		level := protocol.Level(1)
		if n >= 3 {
			level = 2
		}
		pays(t, alice, 4999, level)
	}
	pays(t, alice, 1, 2)
	b.Clock.Advance(24*time.Hour + 24*time.Minute)
	pays(t, alice, 4999, 1)
}

// TestWithoutPassword: a client without a password cannot pay more in small payments.
func TestWithoutPassword(t *testing.T) {
	b := appliancetest.New(t)
	bob := b.EnrolPhone("bob")
	for range 3 {
		pays(t, bob, 4999, 1)
	}
	expect(t, bob.Challenge(payment, eur(4999)).Approve(), protocol.ResultDenied, protocol.CodePolicy)
	pays(t, bob, 2, 1) // 149.99
	expect(t, bob.Challenge(payment, eur(1)).Approve(), protocol.ResultDenied, protocol.CodePolicy)
}

// TestSumRoseMeanwhile: challenges at level 1 that are answered after others used the sum up are
// denied, and charge nothing.
func TestSumRoseMeanwhile(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	var waiting []*appliancetest.Session
	for range 5 {
		s := alice.Challenge(payment, eur(4999))
		if s.P2.Level != 1 {
			t.Fatalf("level %d", s.P2.Level)
		}
		waiting = append(waiting, s)
	}
	for n, s := range waiting {
		a, want := s.Approve(), protocol.Code(0)
		if n >= 3 {
			want = protocol.CodePolicy
		}
		if a.P4.Reason != want || (a.Res.Decision == nil) != (want != 0) {
			t.Errorf("payment %d: code %d, want %d", n+1, a.P4.Reason, want)
		}
	}
	pays(t, alice, 2, 1) // 149.99 in all
}

// TestRefundOfSum: what the device did not perform does not count, whatever was paid since.
func TestRefundOfSum(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	first := pays(t, alice, 4999, 1)
	b.Clock.Advance(time.Hour)
	pays(t, alice, 4999, 1)
	pays(t, alice, 4999, 1)
	pays(t, alice, 4999, 2)
	if err := b.Authorize.Outcome(t.Context(), b.Gate, deviceapi.OutcomeRequest{Transaction: first}); err != nil {
		t.Fatal(err)
	}
	pays(t, alice, 3, 2) // 150.00
	b.Clock.Advance(24*time.Hour + 24*time.Minute)
	pays(t, alice, 4999, 1)
}

// TestSumOfWhom: sums are of one client and one service. An unknown client has none, nor have
// questions about a serial, dry runs, and what was denied.
func TestSumOfWhom(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolFull("alice"), b.EnrolFull("bob")
	order := deviceapi.Order{Services: []protocol.Service{payment, 0, 2}, Amount: eur(4999)}
	for range 5 {
		refused := alice.Challenge(payment, eur(4999))
		expect(t, refused.Must(refused.M3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
		s, err := alice.Apply(alice.P1(protocol.ServiceDryRun), order)
		if err != nil || s.P2.Level != 1 {
			t.Fatalf("a dry run: level %d, %v", s.P2.Level, err)
		}
		expect(t, s.Approve(), protocol.ResultApproved, 0)
	}
	for range 3 {
		pays(t, alice, 4999, 1)
	}
	pays(t, bob, 4999, 1)
	if s := b.Stranger().Challenge(payment, eur(4999)); s.P2.Level != 1 {
		t.Errorf("an unknown client: level %d", s.P2.Level)
	}
	s, err := alice.Apply(alice.P1(protocol.ServiceDryRun), order)
	if err != nil || s.P2.Level != 1 {
		t.Errorf("a dry run after payments: level %d, %v", s.P2.Level, err)
	}
}

// TestSumForged: a record that does not fit its seal does not show which level is enough.
func TestSumForged(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	pays(t, alice, 4999, 1)
	b.Tamper(1, "UPDATE restraint SET windows = NULL")
	s, err := alice.Apply(alice.P1(payment), deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(4999)})
	if err != nil || s.P2.Code != protocol.CodePolicy || s.Res.Handle != nil {
		t.Errorf("challenge %+v, %v", s.P2, err)
	}
	if b.Seals.Forged() == 0 {
		t.Error("no alarm")
	}
	alice.Challenge(door, nil) // nothing of the client is looked at
}

// TestBadOrderShowsNothing: what is wrong with an order is answered before anything of the client is read, so that the
// code is the same for every client (PROTOCOL.md §7, 37).
func TestBadOrderShowsNothing(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	pays(t, alice, 4999, 1)
	b.Tamper(1, "UPDATE restraint SET windows = NULL")
	for name, tc := range map[string]struct {
		amount *protocol.Amount
		want   protocol.Code
	}{
		"no amount":        {nil, protocol.CodeAmountMissing},
		"another currency": {&protocol.Amount{Minor: 1, Currency: "JPY"}, protocol.CodeAmountNotAllowed},
	} {
		for _, p := range []*appliancetest.Phone{alice, b.Stranger()} {
			s, err := p.Apply(p.P1(payment), deviceapi.Order{Services: []protocol.Service{payment}, Amount: tc.amount})
			if err != nil || s.P2.Code != tc.want {
				t.Errorf("%s: %+v, %v, want code %d", name, s.P2, err, tc.want)
			}
		}
	}
	if n := b.Seals.Forged(); n != 0 {
		t.Errorf("%d alarms: a record was read", n)
	}
}

// TestSumLevel4: the first client's sum is judged and charged at the second approval, and the second
// client's is not.
func TestSumLevel4(t *testing.T) {
	b := appliancetest.New(t)
	alice, carol := b.EnrolFull("alice"), b.EnrolFull("carol", "approver")
	_, waits := b.Pending(alice)
	pays(t, alice, 4999, 1) // nothing is charged yet
	expect(t, carol.Second(waits.Res.NextHandle).Right(), protocol.ResultApproved, 0)
	pays(t, carol, 4999, 1)
	pays(t, alice, 1, 2)
}
