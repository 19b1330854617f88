package authorize_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/authorize"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

func TestApproved(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	s := alice.Challenge(payment, eur(4999))
	if s.P2.Level != 1 || s.P2.Factors != 1 || s.P2.TTL != 90 || s.P2.DeviceName != "gate" || *s.P2.Amount != *eur(4999) {
		t.Errorf("challenge is %+v", s.P2)
	}
	a := s.Must(s.M3(protocol.Approve))
	if a.P4.Result != protocol.ResultApproved || a.P4.Reason != 0 {
		t.Fatalf("answered %s, code %d", a.P4.Result, a.P4.Reason)
	}
	d, err := s.Verify(a.Res.Decision, eur(4999))
	if err != nil {
		t.Fatal(err)
	}
	if d.Statement != s.Statement.Hash() || d.Factors != protocol.FactorSignature || d.Level != 1 || d.Lifetime != 120 {
		t.Errorf("decision is %+v", d)
	}
	if rec := b.LastRecord(); rec.Kind != audit.KindDecision || rec.Subject != "client/"+alice.ID.String() {
		t.Errorf("record is %s about %s", rec.Kind, rec.Subject)
	}
	if c, _ := b.Parties.ClientNamed(t.Context(), "alice"); c.Highest != 1 {
		t.Errorf("highest counter is %d", c.Highest)
	}
}

// TestApplyStoresNothing: a flood of applications costs no storage.
func TestApplyStoresNothing(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	before := b.Tally()
	for range 20 {
		alice.Challenge(door, nil)
	}
	if after := b.Tally(); after != before {
		t.Errorf("store went from %+v to %+v", before, after)
	}
}

func TestApplyRefused(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	amount := func(a *protocol.Amount) *message.Proposal { return &message.Proposal{Amount: a} }
	for _, c := range []struct {
		name    string
		service protocol.Service
		level   protocol.Level
		propose *message.Proposal
		order   deviceapi.Order
		want    protocol.Code
	}{
		{"another service than ordered", door, 1, nil, deviceapi.Order{Services: []protocol.Service{payment}}, protocol.CodeService},
		{"service not in the policy", 999, 1, nil, deviceapi.Order{Services: []protocol.Service{999}}, protocol.CodeService},
		{"dry run that the device does not take", 0, 1, nil, deviceapi.Order{Services: []protocol.Service{door}}, protocol.CodeService},
		{"second approval of nothing", 3, 1, nil, deviceapi.Order{Services: []protocol.Service{3, payment}}, protocol.CodeService},
		{"reserved service", 4, 1, nil, deviceapi.Order{Services: []protocol.Service{4}}, protocol.CodeService},
		{"no level", door, 0, nil, deviceapi.Order{Services: []protocol.Service{door}}, protocol.CodeLevel},
		{"level out of range", door, 9, nil, deviceapi.Order{Services: []protocol.Service{door}}, protocol.CodeLevel},
		{"amount missing", payment, 1, nil, deviceapi.Order{Services: []protocol.Service{payment}}, protocol.CodeAmountMissing},
		{"amount for a door", door, 1, nil, deviceapi.Order{Services: []protocol.Service{door}, Amount: eur(1)}, protocol.CodeAmountNotAllowed},
		{"other currency", payment, 1, nil, deviceapi.Order{
			Services: []protocol.Service{payment}, Amount: &protocol.Amount{Minor: 1, Currency: "JPY"},
		}, protocol.CodeAmountNotAllowed},
		{"amounts differ", payment, 1, amount(eur(100)), deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(101)}, protocol.CodeAmountDiffers},
		{"texts differ", door, 1, &message.Proposal{Text: "a"}, deviceapi.Order{Services: []protocol.Service{door}, Text: "b"}, protocol.CodeTextDiffers},
	} {
		t.Run(c.name, func(t *testing.T) {
			p1 := alice.P1(c.service)
			p1.Level, p1.Proposal = c.level, c.propose
			s, err := alice.Apply(p1, c.order)
			if err != nil {
				t.Fatal(err)
			}
			if s.P2.Code != c.want || s.Res.Handle != nil {
				t.Errorf("code %d with a handle of %d bytes, want code %d and none", s.P2.Code, len(s.Res.Handle), c.want)
			}
		})
	}
}

func TestRefusedByTheUser(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	s := alice.Challenge(door, nil)
	a := s.Must(s.M3(protocol.Refuse))
	if a.P4.Result != protocol.ResultDenied || a.P4.Reason != protocol.CodeUserRefused || a.Res.Decision != nil {
		t.Errorf("answered %s, code %d, decision of %d bytes", a.P4.Result, a.P4.Reason, len(a.Res.Decision))
	}
	if tally := b.Tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions stored, want the refusal", tally.Decisions)
	}
	if a := s.Must(s.M3(protocol.Approve)); a.P4.Reason != protocol.CodeSerial {
		t.Errorf("approval after refusal: code %d, want 14", a.P4.Reason)
	}
}

// TestRepeat: the same M3 gets the same answer, once or a hundred times concurrently, also after
// a restart and after the ttl, and makes one decision.
func TestRepeat(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	s := alice.Challenge(door, nil)
	m3 := s.M3(protocol.Approve)
	answers := make(chan appliancetest.Answer, 100)
	var all sync.WaitGroup
	for range cap(answers) {
		all.Go(func() {
			if a, err := s.Send(m3); err == nil {
				answers <- a
			}
		})
	}
	all.Wait()
	b.Clock.Advance(23 * time.Hour)
	b.Restart()
	last := s.Must(m3)
	close(answers)
	want, err := s.Verify(last.Res.Decision, nil)
	if err != nil {
		t.Fatal(err)
	}
	n, receipts := 0, map[string]bool{string(last.Res.M4): true}
	for a := range answers {
		d, err := s.Verify(a.Res.Decision, nil)
		if err != nil || d.Transaction != want.Transaction {
			t.Fatalf("decision on %s, %v; want %s", d.Transaction, err, want.Transaction)
		}
		receipts[string(a.Res.M4)] = true
		n++
	}
	if n != 100 || len(receipts) != 101 {
		t.Errorf("%d answers in %d different M4; want 100 in 101, each under a fresh r", n, len(receipts))
	}
	if tally := b.Tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions", tally.Decisions)
	}
}

func TestSettledRefusals(t *testing.T) {
	b := appliancetest.New(t)
	alice, mallory := b.EnrolPhone("alice"), b.Stranger()
	suspended, revoked := b.EnrolPhone("suspended"), b.EnrolPhone("revoked")
	sessions := map[string]*appliancetest.Session{}
	for name, p := range map[string]*appliancetest.Phone{"unknown": mallory, "suspended": suspended, "revoked": revoked, "alice": alice, "late": alice} {
		sessions[name] = p.Challenge(door, nil)
	}
	for name, to := range map[string]store.Status{"suspended": store.Suspended, "revoked": store.Revoked} {
		if _, err := b.Parties.SetClientStatus(t.Context(), name, to); err != nil {
			t.Fatal(err)
		}
	}
	forged := func(s *appliancetest.Session) []byte {
		sig, err := message.Countersign(t.Context(), appliancetest.NewSoftKey(), s.Statement, message.Approval{Verdict: protocol.Approve, Slot: 1})
		if err != nil {
			t.Fatal(err)
		}
		return s.Channel.SealM3(0, message.P3{Verdict: protocol.Approve, Signature: sig, Slot: 1}.Marshal())
	}
	before := b.Tally()
	for _, c := range []struct {
		name    string
		session string
		m3      func(*appliancetest.Session) []byte
		want    protocol.Code
		stored  bool
	}{
		{"unknown client", "unknown", func(s *appliancetest.Session) []byte { return s.M3(protocol.Approve) }, protocol.CodeRefused, false},
		{"revoked client, bad signature", "revoked", forged, protocol.CodeRefused, false},
		{"suspended client, bad signature", "suspended", forged, protocol.CodeRefused, false},
		{"bad signature", "alice", forged, protocol.CodeSignature, false},
		{"attempt 1 after nothing", "alice", func(s *appliancetest.Session) []byte {
			return s.Channel.SealM3(1, message.P3{Verdict: protocol.Approve, Slot: 1}.Marshal())
		}, protocol.CodeSerial, false},
		{"revoked client", "revoked", func(s *appliancetest.Session) []byte { return s.M3(protocol.Approve) }, protocol.CodeRefused, true},
		{"suspended client", "suspended", func(s *appliancetest.Session) []byte { return s.M3(protocol.Approve) }, protocol.CodeSuspended, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sessions[c.session]
			a := s.Must(c.m3(s))
			if a.P4.Result != protocol.ResultDenied || a.P4.Reason != c.want || a.Res.Decision != nil {
				t.Errorf("answered %s, code %d, want denied, %d and no decision", a.P4.Result, a.P4.Reason, c.want)
			}
			if len(a.Res.M4) != 31 {
				t.Errorf("M4 of %d bytes, want 31 for every reason", len(a.Res.M4))
			}
			if after := b.Tally(); (after != before) != c.stored {
				t.Errorf("store went from %+v to %+v", before, after)
			}
			before = b.Tally()
		})
	}
	b.Clock.Advance(91 * time.Second)
	if a := sessions["late"].Must(sessions["late"].M3(protocol.Approve)); a.P4.Reason != protocol.CodeExpired {
		t.Errorf("after the ttl: code %d, want 8", a.P4.Reason)
	}
}

// TestCounters: a counter that is not above the highest spent one gets code 14, the same counter
// with other random bytes counts as a clone.
func TestCounters(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	older, newer := alice.Challenge(door, nil), alice.Challenge(door, nil)
	alice.Counter-- // as a copied phone would
	clone := alice.Challenge(door, nil)
	if a := newer.Must(newer.M3(protocol.Approve)); a.P4.Result != protocol.ResultApproved {
		t.Fatalf("code %d", a.P4.Reason)
	}
	if a := older.Must(older.M3(protocol.Approve)); a.P4.Reason != protocol.CodeSerial {
		t.Errorf("older counter: code %d, want 14", a.P4.Reason)
	}
	if a := clone.Must(clone.M3(protocol.Approve)); a.P4.Reason != protocol.CodeClone {
		t.Errorf("counter twice: code %d, want 23", a.P4.Reason)
	}
	if rec := b.LastRecord(); rec.Kind != audit.KindRefused {
		t.Errorf("last record is %q, want the clone alarm", rec.Kind)
	}
	if tally := b.Tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions", tally.Decisions)
	}
}

func TestHandles(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	other := b.EnrolDevice("other")
	s := alice.Challenge(door, nil)
	m3 := s.M3(protocol.Approve)
	countersign := func(d store.Device, handle []byte) error {
		_, err := b.Authorize.Countersign(t.Context(), d, deviceapi.CountersignRequest{Handle: handle, M3: m3})
		return err
	}
	if err := countersign(other, s.Res.Handle); !errors.Is(err, protocol.CodeExpired) {
		t.Errorf("another device's handle: %v, want code 8", err)
	}
	for i := range s.Res.Handle {
		bad := append([]byte{}, s.Res.Handle...)
		bad[i] ^= 1
		if err := countersign(b.Gate, bad); !errors.Is(err, protocol.CodeExpired) {
			t.Fatalf("handle with byte %d flipped: %v, want code 8", i, err)
		}
	}
	swapped := alice.Challenge(door, nil)
	if err := countersign(b.Gate, swapped.Res.Handle); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("M3 under another challenge's handle: %v, want code 1", err)
	}
	b.Clock.Advance(26 * time.Hour)
	if err := countersign(b.Gate, s.Res.Handle); !errors.Is(err, protocol.CodeExpired) {
		t.Errorf("handle of yesterday: %v, want code 8", err)
	}
	if tally := b.Tally(); tally.Decisions != 0 {
		t.Errorf("%d decisions", tally.Decisions)
	}
}

// TestClockSetBack: a clock that goes back before the issue of a challenge makes it no younger.
func TestClockSetBack(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	b.Clock.Advance(time.Hour)
	s := alice.Challenge(door, nil)
	b.Clock.Advance(-time.Second)
	expect(t, s.Must(s.M3(protocol.Approve)), protocol.ResultDenied, protocol.CodeExpired)
	b.Clock.Advance(time.Second)
	expect(t, s.Must(s.M3(protocol.Approve)), protocol.ResultApproved, 0)
}

// TestFlippedBits: nothing is decided after a relay flips any bit of M1 or M3.
func TestFlippedBits(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	s := alice.Challenge(door, nil)
	before := b.Tally()
	for i := range len(s.M1) * 8 {
		m1 := append([]byte{}, s.M1...)
		m1[i/8] ^= 1 << (i % 8)
		res, err := b.Authorize.Apply(t.Context(), b.Gate, deviceapi.ApplyRequest{
			M1: m1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: s.Nonce,
		})
		if kind, _ := message.Kind(res.M2); err == nil && kind != message.KindKeyUpdate {
			t.Fatalf("M1 with bit %d flipped was answered with a challenge", i)
		}
	}
	m3 := s.M3(protocol.Approve)
	for i := range len(m3) * 8 {
		bad := append([]byte{}, m3...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := s.Send(bad); err == nil {
			t.Fatalf("M3 with bit %d flipped was answered", i)
		}
	}
	if after := b.Tally(); after != before {
		t.Errorf("store went from %+v to %+v", before, after)
	}
	if a := s.Must(m3); a.P4.Result != protocol.ResultApproved {
		t.Errorf("the M3 itself: code %d", a.P4.Reason)
	}
}

func TestPolicyChangedMeanwhile(t *testing.T) {
	b := appliancetest.New(t)
	s := b.EnrolPhone("alice").Challenge(door, nil)
	b.AddPolicy(2, policy.Default())
	if a := s.Must(s.M3(protocol.Approve)); a.P4.Reason != protocol.CodePolicy {
		t.Errorf("code %d, want 12", a.P4.Reason)
	}
}

// TestRepeatUnderNewPolicy: a repeated M3 gets its approval again after the policy has changed, because the
// decision follows from the policy of the challenge.
func TestRepeatUnderNewPolicy(t *testing.T) {
	b := appliancetest.New(t)
	s := b.EnrolPhone("alice").Challenge(door, nil)
	m3 := s.M3(protocol.Approve)
	first, err := s.Verify(s.Must(m3).Res.Decision, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.AddPolicy(2, append(policy.Default(), "# later\n"...))
	b.Restart()
	again, err := s.Verify(s.Must(m3).Res.Decision, nil)
	if err != nil || again.Transaction != first.Transaction || again.Policy != first.Policy {
		t.Errorf("transaction %s under policy %x, %v; want %s under %x", again.Transaction, again.Policy, err, first.Transaction, first.Policy)
	}
}

const limited = `
[[service]]
id = 200
name = "payment"
currency = "EUR"
levels = [{ from = "0.00", level = 1 }]
limits = [{ window = "24h", amount = "100.00" }, { window = "1h", count = 2 }]
`

// TestLimits: limits are exact to the cent, and "not performed" gives an amount back once.
func TestLimits(t *testing.T) {
	b := appliancetest.New(t)
	b.AddPolicy(2, []byte(limited))
	b.Restart()
	alice := b.EnrolPhone("alice")
	pay := func(minor uint64) appliancetest.Answer {
		t.Helper()
		s := alice.Challenge(payment, eur(minor))
		return s.Must(s.M3(protocol.Approve))
	}
	first := pay(6000)
	for _, step := range []struct {
		minor uint64
		want  protocol.Code
	}{{4001, protocol.CodeLimit}, {4000, 0}, {0, protocol.CodeLimit}} {
		if a := pay(step.minor); a.P4.Reason != step.want {
			t.Fatalf("%d cents: code %d, want %d", step.minor, a.P4.Reason, step.want)
		}
	}
	d, err := receipt.Verify(trust.Keyring{Root: b.Trust.Root, KeyCerts: b.Trust.KeyCerts(trust.UseDecision), Now: uint64(b.Clock.Now().Unix())}, first.Res.Decision)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Authorize.Outcome(t.Context(), b.Gate, deviceapi.OutcomeRequest{Transaction: d.Transaction, Performed: false}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Authorize.Outcome(t.Context(), b.EnrolDevice("other"), deviceapi.OutcomeRequest{Transaction: d.Transaction}); !errors.Is(err, authorize.ErrNoTransaction) {
		t.Errorf("another device's report: %v, want not found", err)
	}
	for _, step := range []struct {
		minor uint64
		want  protocol.Code
	}{{6001, protocol.CodeLimit}, {6000, 0}, {1, protocol.CodeLimit}} {
		if a := pay(step.minor); a.P4.Reason != step.want {
			t.Fatalf("after the report %d cents: code %d, want %d", step.minor, a.P4.Reason, step.want)
		}
	}
}

func TestStaleKemEpoch(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	b.Clock.Advance(130 * 24 * time.Hour)
	s := alice.SealOnly()
	res, err := b.Authorize.Apply(t.Context(), b.Gate, deviceapi.ApplyRequest{
		M1: s.M1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: s.Nonce,
	})
	if err != nil || res.Handle != nil {
		t.Fatalf("%v, handle of %d bytes", err, len(res.Handle))
	}
	pinned, err := b.Trust.Update(res.M2, uint64(b.Clock.Now().Unix()))
	if err != nil {
		t.Fatal(err)
	}
	if kem, _ := pinned.Key(trust.UseKEM); kem.Epoch != 2 {
		t.Fatalf("kem epoch %d after the key update, want 2", kem.Epoch)
	}
	b.Trust = pinned
	again := alice.Challenge(door, nil)
	if a := again.Must(again.M3(protocol.Approve)); a.P4.Result != protocol.ResultApproved {
		t.Errorf("code %d", a.P4.Reason)
	}
}

func TestFullReceipt(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	p1 := alice.P1(door)
	p1.Capabilities = message.CapabilityFullReceipt
	s, err := alice.Apply(p1, deviceapi.Order{Services: []protocol.Service{door}})
	if err != nil {
		t.Fatal(err)
	}
	a := s.Must(s.M3(protocol.Approve))
	if string(a.P4.Decision) != string(a.Res.Decision) || a.P4.Decision == nil {
		t.Errorf("receipt of %d bytes, decision of %d", len(a.P4.Decision), len(a.Res.Decision))
	}
}

func TestForgedRow(t *testing.T) {
	b := appliancetest.New(t)
	alice, mallory := b.EnrolPhone("alice"), appliancetest.NewSoftKey()
	point := mallory.Point()
	b.Tamper(1, `UPDATE client SET signing_key = ? WHERE name = 'alice'`, point[:])
	alice.Key = mallory
	s := alice.Challenge(door, nil)
	if a := s.Must(s.M3(protocol.Approve)); a.P4.Reason != protocol.CodeRefused {
		t.Errorf("code %d, want 4: the row belongs to no client", a.P4.Reason)
	}
}
