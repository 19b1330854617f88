package appliance_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"sync"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

func newCSR(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func eur(minor uint64) *protocol.Amount { return &protocol.Amount{Minor: minor, Currency: "EUR"} }

const (
	door    protocol.Service = 100
	payment protocol.Service = 200
	vault   protocol.Service = 300
)

func TestApproved(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	s := alice.challenge(payment, eur(4999))
	if s.p2.Level != 1 || s.p2.Factors != 1 || s.p2.TTL != 90 || s.p2.DeviceName != "gate" || *s.p2.Amount != *eur(4999) {
		t.Errorf("challenge is %+v", s.p2)
	}
	a := s.must(s.m3(protocol.Approve))
	if a.p4.Result != protocol.ResultApproved || a.p4.Reason != 0 {
		t.Fatalf("answered %s, code %d", a.p4.Result, a.p4.Reason)
	}
	d, err := s.verify(a.res.Decision, eur(4999))
	if err != nil {
		t.Fatal(err)
	}
	if d.Statement != s.stmt.Hash() || d.Factors != protocol.FactorSignature || d.Level != 1 || d.Lifetime != 120 {
		t.Errorf("decision is %+v", d)
	}
	if rec := b.lastRecord(); rec.Kind != audit.KindDecision || rec.Subject != "client/"+alice.id.String() {
		t.Errorf("record is %s about %s", rec.Kind, rec.Subject)
	}
	if c, _ := b.ClientNamed(t.Context(), "alice"); c.Highest != 1 {
		t.Errorf("highest counter is %d", c.Highest)
	}
}

// TestApplyStoresNothing: a flood of applications costs no storage.
func TestApplyStoresNothing(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	before := b.tally()
	for range 20 {
		alice.challenge(door, nil)
	}
	if after := b.tally(); after != before {
		t.Errorf("store went from %+v to %+v", before, after)
	}
}

func TestApplyRefused(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
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
		{"amount missing", payment, 1, nil, deviceapi.Order{Services: []protocol.Service{payment}}, protocol.CodePolicy},
		{"amount for a door", door, 1, nil, deviceapi.Order{Services: []protocol.Service{door}, Amount: eur(1)}, protocol.CodePolicy},
		{"amounts differ", payment, 1, amount(eur(100)), deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(101)}, protocol.CodePolicy},
		{"texts differ", door, 1, &message.Proposal{Text: "a"}, deviceapi.Order{Services: []protocol.Service{door}, Text: "b"}, protocol.CodePolicy},
	} {
		t.Run(c.name, func(t *testing.T) {
			p1 := alice.p1(c.service)
			p1.Level, p1.Proposal = c.level, c.propose
			s, err := alice.apply(p1, c.order)
			if err != nil {
				t.Fatal(err)
			}
			if s.p2.Code != c.want || s.res.Handle != nil {
				t.Errorf("code %d with a handle of %d bytes, want code %d and none", s.p2.Code, len(s.res.Handle), c.want)
			}
		})
	}
}

func TestRefusedByTheUser(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	s := alice.challenge(door, nil)
	a := s.must(s.m3(protocol.Refuse))
	if a.p4.Result != protocol.ResultDenied || a.p4.Reason != protocol.CodeUserRefused || a.res.Decision != nil {
		t.Errorf("answered %s, code %d, decision of %d bytes", a.p4.Result, a.p4.Reason, len(a.res.Decision))
	}
	if tally := b.tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions stored, want the refusal", tally.Decisions)
	}
	if a := s.must(s.m3(protocol.Approve)); a.p4.Reason != protocol.CodeSerial {
		t.Errorf("approval after refusal: code %d, want 14", a.p4.Reason)
	}
}

// TestRepeat: the same M3 is answered the same way, once or a hundred times at
// once, also after a restart and after the ttl, and leaves one decision.
func TestRepeat(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	s := alice.challenge(door, nil)
	m3 := s.m3(protocol.Approve)
	answers := make(chan answer, 100)
	var all sync.WaitGroup
	for range cap(answers) {
		all.Go(func() {
			if a, err := s.send(m3); err == nil {
				answers <- a
			}
		})
	}
	all.Wait()
	b.clock.advance(23 * time.Hour)
	b.restart()
	last := s.must(m3)
	close(answers)
	want, err := s.verify(last.res.Decision, nil)
	if err != nil {
		t.Fatal(err)
	}
	n, receipts := 0, map[string]bool{string(last.res.M4): true}
	for a := range answers {
		d, err := s.verify(a.res.Decision, nil)
		if err != nil || d.Transaction != want.Transaction {
			t.Fatalf("decision on %s, %v; want %s", d.Transaction, err, want.Transaction)
		}
		receipts[string(a.res.M4)] = true
		n++
	}
	if n != 100 || len(receipts) != 101 {
		t.Errorf("%d answers in %d different M4; want 100 in 101, each under a fresh r", n, len(receipts))
	}
	if tally := b.tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions", tally.Decisions)
	}
}

func TestSettledRefusals(t *testing.T) {
	b := newBench(t)
	alice, mallory := b.enrol("alice"), b.stranger()
	suspended, revoked := b.enrol("suspended"), b.enrol("revoked")
	sessions := map[string]*session{}
	for name, p := range map[string]*phone{"unknown": mallory, "suspended": suspended, "revoked": revoked, "alice": alice, "late": alice} {
		sessions[name] = p.challenge(door, nil)
	}
	for name, to := range map[string]store.Status{"suspended": store.Suspended, "revoked": store.Revoked} {
		if _, err := b.SetClientStatus(t.Context(), name, to); err != nil {
			t.Fatal(err)
		}
	}
	forged := func(s *session) []byte {
		sig, err := message.Countersign(t.Context(), newSoftKey(), s.stmt, message.Approval{Verdict: protocol.Approve, Slot: 1})
		if err != nil {
			t.Fatal(err)
		}
		return s.channel.SealM3(0, message.P3{Verdict: protocol.Approve, Signature: sig, Slot: 1}.Marshal())
	}
	before := b.tally()
	for _, c := range []struct {
		name    string
		session string
		m3      func(*session) []byte
		want    protocol.Code
		stored  bool
	}{
		{"unknown client", "unknown", func(s *session) []byte { return s.m3(protocol.Approve) }, protocol.CodeRefused, false},
		{"revoked client, bad signature", "revoked", forged, protocol.CodeRefused, false},
		{"suspended client, bad signature", "suspended", forged, protocol.CodeRefused, false},
		{"bad signature", "alice", forged, protocol.CodeSignature, false},
		{"attempt 1 after nothing", "alice", func(s *session) []byte {
			return s.channel.SealM3(1, message.P3{Verdict: protocol.Approve, Slot: 1}.Marshal())
		}, protocol.CodeSerial, false},
		{"revoked client", "revoked", func(s *session) []byte { return s.m3(protocol.Approve) }, protocol.CodeRefused, true},
		{"suspended client", "suspended", func(s *session) []byte { return s.m3(protocol.Approve) }, protocol.CodeSuspended, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sessions[c.session]
			a := s.must(c.m3(s))
			if a.p4.Result != protocol.ResultDenied || a.p4.Reason != c.want || a.res.Decision != nil {
				t.Errorf("answered %s, code %d, want denied, %d and no decision", a.p4.Result, a.p4.Reason, c.want)
			}
			if len(a.res.M4) != 31 {
				t.Errorf("M4 of %d bytes, want 31 whatever the reason", len(a.res.M4))
			}
			if after := b.tally(); (after != before) != c.stored {
				t.Errorf("store went from %+v to %+v", before, after)
			}
			before = b.tally()
		})
	}
	b.clock.advance(91 * time.Second)
	if a := sessions["late"].must(sessions["late"].m3(protocol.Approve)); a.p4.Reason != protocol.CodeExpired {
		t.Errorf("after the ttl: code %d, want 8", a.p4.Reason)
	}
}

// TestCounters: a counter that is not above the highest spent is 14, the same
// counter with other random bytes is a clone.
func TestCounters(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	older, newer := alice.challenge(door, nil), alice.challenge(door, nil)
	alice.counter-- // as a copy of the phone would
	clone := alice.challenge(door, nil)
	if a := newer.must(newer.m3(protocol.Approve)); a.p4.Result != protocol.ResultApproved {
		t.Fatalf("code %d", a.p4.Reason)
	}
	if a := older.must(older.m3(protocol.Approve)); a.p4.Reason != protocol.CodeSerial {
		t.Errorf("older counter: code %d, want 14", a.p4.Reason)
	}
	if a := clone.must(clone.m3(protocol.Approve)); a.p4.Reason != protocol.CodeClone {
		t.Errorf("counter twice: code %d, want 23", a.p4.Reason)
	}
	if rec := b.lastRecord(); rec.Kind != audit.KindRefused {
		t.Errorf("last record is %q, want the clone alarm", rec.Kind)
	}
	if tally := b.tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions", tally.Decisions)
	}
}

func TestHandles(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	other := b.enrolDevice("other")
	s := alice.challenge(door, nil)
	m3 := s.m3(protocol.Approve)
	countersign := func(d store.Device, handle []byte) error {
		_, err := b.Countersign(t.Context(), d, deviceapi.CountersignRequest{Handle: handle, M3: m3})
		return err
	}
	if err := countersign(other, s.res.Handle); !errors.Is(err, protocol.CodeExpired) {
		t.Errorf("another device's handle: %v, want code 8", err)
	}
	for i := range s.res.Handle {
		bad := append([]byte{}, s.res.Handle...)
		bad[i] ^= 1
		if err := countersign(b.device, bad); !errors.Is(err, protocol.CodeExpired) {
			t.Fatalf("handle with byte %d flipped: %v, want code 8", i, err)
		}
	}
	swapped := alice.challenge(door, nil)
	if err := countersign(b.device, swapped.res.Handle); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("M3 under another challenge's handle: %v, want code 1", err)
	}
	b.clock.advance(26 * time.Hour)
	if err := countersign(b.device, s.res.Handle); !errors.Is(err, protocol.CodeExpired) {
		t.Errorf("handle of yesterday: %v, want code 8", err)
	}
	if tally := b.tally(); tally.Decisions != 0 {
		t.Errorf("%d decisions", tally.Decisions)
	}
}

// TestFlippedBits: whatever bit of M1 or M3 a relay alters, nothing is decided.
func TestFlippedBits(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	s := alice.challenge(door, nil)
	before := b.tally()
	for i := range len(s.m1) * 8 {
		m1 := append([]byte{}, s.m1...)
		m1[i/8] ^= 1 << (i % 8)
		res, err := b.Apply(t.Context(), b.device, deviceapi.ApplyRequest{
			M1: m1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: s.nonce,
		})
		if kind, _ := message.Kind(res.M2); err == nil && kind != message.KindKeyUpdate {
			t.Fatalf("M1 with bit %d flipped was answered with a challenge", i)
		}
	}
	m3 := s.m3(protocol.Approve)
	for i := range len(m3) * 8 {
		bad := append([]byte{}, m3...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := s.send(bad); err == nil {
			t.Fatalf("M3 with bit %d flipped was answered", i)
		}
	}
	if after := b.tally(); after != before {
		t.Errorf("store went from %+v to %+v", before, after)
	}
	if a := s.must(m3); a.p4.Result != protocol.ResultApproved {
		t.Errorf("the M3 itself: code %d", a.p4.Reason)
	}
}

func TestPolicyChangedMeanwhile(t *testing.T) {
	b := newBench(t)
	s := b.enrol("alice").challenge(door, nil)
	b.addPolicy(2, policy.Default())
	if a := s.must(s.m3(protocol.Approve)); a.p4.Reason != protocol.CodePolicy {
		t.Errorf("code %d, want 12", a.p4.Reason)
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

// TestLimits: limits hold to the cent, and what was not performed is given back,
// once.
func TestLimits(t *testing.T) {
	b := newBench(t)
	b.addPolicy(2, []byte(limited))
	b.restart()
	alice := b.enrol("alice")
	pay := func(minor uint64) answer {
		t.Helper()
		s := alice.challenge(payment, eur(minor))
		return s.must(s.m3(protocol.Approve))
	}
	first := pay(6000)
	for _, step := range []struct {
		minor uint64
		want  protocol.Code
	}{{4001, protocol.CodeLimit}, {4000, 0}, {0, protocol.CodeLimit}} {
		if a := pay(step.minor); a.p4.Reason != step.want {
			t.Fatalf("%d cents: code %d, want %d", step.minor, a.p4.Reason, step.want)
		}
	}
	d, err := receipt.Verify(trust.Keyring{Root: b.trust.Root, KeyCerts: b.trust.KeyCerts(trust.UseDecision), Now: uint64(b.clock.Now().Unix())}, first.res.Decision)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Outcome(t.Context(), b.device, deviceapi.OutcomeRequest{Transaction: d.Transaction, Performed: false}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Outcome(t.Context(), b.enrolDevice("other"), deviceapi.OutcomeRequest{Transaction: d.Transaction}); !errors.Is(err, appliance.ErrNoTransaction) {
		t.Errorf("another device's report: %v, want not found", err)
	}
	for _, step := range []struct {
		minor uint64
		want  protocol.Code
	}{{6001, protocol.CodeLimit}, {6000, 0}, {1, protocol.CodeLimit}} {
		if a := pay(step.minor); a.p4.Reason != step.want {
			t.Fatalf("after the report %d cents: code %d, want %d", step.minor, a.p4.Reason, step.want)
		}
	}
}

func TestStaleKemEpoch(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	b.clock.advance(130 * 24 * time.Hour)
	s := alice.sealOnly()
	res, err := b.Apply(t.Context(), b.device, deviceapi.ApplyRequest{
		M1: s.m1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: s.nonce,
	})
	if err != nil || res.Handle != nil {
		t.Fatalf("%v, handle of %d bytes", err, len(res.Handle))
	}
	pinned, err := b.trust.Update(res.M2, uint64(b.clock.Now().Unix()))
	if err != nil {
		t.Fatal(err)
	}
	if kem, _ := pinned.Key(trust.UseKEM); kem.Epoch != 2 {
		t.Fatalf("kem epoch %d after the key update, want 2", kem.Epoch)
	}
	b.trust = pinned
	again := alice.challenge(door, nil)
	if a := again.must(again.m3(protocol.Approve)); a.p4.Result != protocol.ResultApproved {
		t.Errorf("code %d", a.p4.Reason)
	}
}

// sealOnly is an M1 that is not sent yet.
func (p *phone) sealOnly() *session {
	p.b.Helper()
	kem, _ := p.b.trust.Key(trust.UseKEM)
	s := &session{p: p, p1: p.p1(door)}
	var err error
	if s.m1, s.es, err = message.SealM1(p.b.trust.Root.RootID(), kem.Epoch, kem.KeyCert.Key, s.p1.Marshal()); err != nil {
		p.b.Fatal(err)
	}
	return s
}

func TestFullReceipt(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	p1 := alice.p1(door)
	p1.Capabilities = message.CapabilityFullReceipt
	s, err := alice.apply(p1, deviceapi.Order{Services: []protocol.Service{door}})
	if err != nil {
		t.Fatal(err)
	}
	a := s.must(s.m3(protocol.Approve))
	if string(a.p4.Decision) != string(a.res.Decision) || a.p4.Decision == nil {
		t.Errorf("receipt of %d bytes, decision of %d", len(a.p4.Decision), len(a.res.Decision))
	}
}

func TestForgedRow(t *testing.T) {
	b := newBench(t)
	alice, mallory := b.enrol("alice"), newSoftKey()
	point := mallory.point()
	b.tamper(1, `UPDATE client SET signing_key = ? WHERE name = 'alice'`, point[:])
	alice.key = mallory
	s := alice.challenge(door, nil)
	if a := s.must(s.m3(protocol.Approve)); a.p4.Reason != protocol.CodeRefused {
		t.Errorf("code %d, want 4: the row is nobody's", a.p4.Reason)
	}
}

func TestEnrolOnce(t *testing.T) {
	b := newBench(t)
	code := b.invite(store.KindClient, "alice")
	alice, mallory := b.stranger(), b.stranger()
	body := alice.request(code)
	first, err := b.Enrol(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.Enrol(t.Context(), body)
	if err != nil || string(again) != string(first) {
		t.Errorf("identical repeat: %v, the same answer: %v", err, string(again) == string(first))
	}
	if _, err := b.Enrol(t.Context(), mallory.request(code)); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("code used by another: %v, want code 4", err)
	}
	if _, err := b.Enrol(t.Context(), alice.request(b.invite(store.KindClient, "bob"))); !errors.Is(err, appliance.ErrTaken) {
		t.Errorf("same key twice: %v, want taken", err)
	}
	if _, err := b.Enrol(t.Context(), mallory.request(b.invite(store.KindDevice, "pos"))); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("device's code: %v, want code 4", err)
	}
	late := b.invite(store.KindClient, "carol")
	b.clock.advance(25 * time.Hour)
	if _, err := b.Enrol(t.Context(), mallory.request(late)); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("expired code: %v, want code 4", err)
	}
}
