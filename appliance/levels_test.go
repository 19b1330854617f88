package appliance_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

var wrongProof = make([]byte, message.ProofSize)

func (s *session) check(level protocol.Level, services ...protocol.Service) receipt.Check {
	s.p.b.Helper()
	chal, err := message.ChallengeOf(s.res.M2)
	if err != nil {
		s.p.b.Fatal(err)
	}
	certs := slices.Concat(s.p.b.trust.KeyCerts(trust.UseDecision), s.p.b.trust.KeyCerts(trust.UseClientCA))
	return receipt.Check{
		Root: s.p.b.trust.Root, KeyCerts: certs, Now: uint64(s.p.b.clock.Now().Unix()),
		Device: s.p.b.device.ID, Nonce: s.nonce, Challenges: []protocol.Challenge{chal}, Services: services, Floor: level,
	}
}

func expect(t *testing.T, a answer, result protocol.Result, reason protocol.Code) {
	t.Helper()
	if a.p4.Result != result || a.p4.Reason != reason {
		t.Fatalf("answered %s, code %d; want %s, code %d", a.p4.Result, a.p4.Reason, result, reason)
	}
}

func (b *bench) guard(p *phone) store.Guard {
	b.Helper()
	g, err := b.store.Guard(b.Context(), p.id)
	if err != nil {
		b.Fatal(err)
	}
	return g
}

func TestPassword(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	s := alice.challenge(payment, eur(5000))
	if s.p2.Level != 2 || s.p2.Factors != 3 {
		t.Fatalf("level %d, factors %s", s.p2.Level, s.p2.Factors)
	}
	first := s.with(0, wrongProof)
	a := s.must(first)
	expect(t, a, protocol.ResultRetry, protocol.CodePassword)
	if *a.p4.TriesLeft != 2 || a.res.Decision != nil {
		t.Errorf("%d tries left, decision of %d bytes", *a.p4.TriesLeft, len(a.res.Decision))
	}
	again := s.must(first)
	expect(t, again, protocol.ResultRetry, protocol.CodePassword)
	if *again.p4.TriesLeft != 2 || b.guard(alice).Wrong != 1 {
		t.Errorf("a repeat: %d tries left, %d counted; want 2 and 1", *again.p4.TriesLeft, b.guard(alice).Wrong)
	}
	expect(t, s.must(s.with(2, wrongProof)), protocol.ResultDenied, protocol.CodeSerial)
	expect(t, s.must(s.with(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
	a = s.must(s.with(1, nil))
	expect(t, a, protocol.ResultApproved, 0)
	check := s.check(2, payment)
	check.Amount = eur(5000)
	d, err := check.Verify(a.res.Decision)
	if err != nil || d.Factors != 3 {
		t.Errorf("factors %s, %v", d.Factors, err)
	}
	if g := b.guard(alice); g.Wrong != 0 || !g.Until.IsZero() {
		t.Errorf("after the right one the guard is %+v", g)
	}
	b.clock.advance(time.Hour)
	expect(t, s.must(first), protocol.ResultRetry, protocol.CodePassword)
}

// TestPasswordRepeatedAtOnce: the same M3 a hundred times at once is one approval, and
// nobody is told anything else.
func TestPasswordRepeatedAtOnce(t *testing.T) {
	b := newBench(t)
	s := b.enrolFull("alice").challenge(payment, eur(5000))
	m3 := s.with(0, nil)
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
	close(answers)
	n := 0
	for a := range answers {
		expect(t, a, protocol.ResultApproved, 0)
		n++
	}
	if tally := b.tally(); n != 100 || tally.Decisions != 1 {
		t.Errorf("%d approvals told, %d decisions", n, tally.Decisions)
	}
	if rec := b.lastRecord(); rec.Kind != audit.KindDecision {
		t.Errorf("last record is %q", rec.Kind)
	}
}

// TestNoVerifier: who enrolled no password is told so, and no try is counted.
func TestNoVerifier(t *testing.T) {
	b := newBench(t)
	bob := b.enrol("bob")
	s := bob.challenge(payment, eur(5000))
	expect(t, s.must(s.with(0, wrongProof)), protocol.ResultDenied, protocol.CodePolicy)
	if g := b.guard(bob); g.Wrong != 0 {
		t.Errorf("%d tries counted", g.Wrong)
	}
}

// TestForgedRowIsNotBlessed: suspend and resume do not give a forged row a seal.
func TestForgedRowIsNotBlessed(t *testing.T) {
	b := newBench(t)
	b.enrol("alice")
	point := newSoftKey().point()
	b.tamper(1, `UPDATE client SET signing_key = ? WHERE name = 'alice'`, point[:])
	if _, err := b.SetClientStatus(t.Context(), "alice", store.Suspended); !errors.Is(err, appliance.ErrForged) {
		t.Errorf("suspending a forged row: %v, want forged", err)
	}
}

// TestThirdWrong: the third wrong password ends the challenge, and the serial.
func TestThirdWrong(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	s := alice.challenge(payment, eur(5000))
	expect(t, s.must(s.with(0, wrongProof)), protocol.ResultRetry, protocol.CodePassword)
	expect(t, s.must(s.with(1, wrongProof)), protocol.ResultRetry, protocol.CodePassword)
	expect(t, s.must(s.with(2, wrongProof)), protocol.ResultDenied, protocol.CodePassword)
	expect(t, s.must(s.with(3, nil)), protocol.ResultDenied, protocol.CodeSerial)
	if tally := b.tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions, want the denial", tally.Decisions)
	}
}

// TestLockOut: five wrong tries start the back-off, twenty lock for good, an
// administrator unlocks. A bad signature never counts.
func TestLockOut(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	forged := alice.challenge(payment, eur(5000))
	m3 := forged.with(0, wrongProof)
	mallory := *alice
	mallory.key = newSoftKey()
	bad := mallory.challenge(payment, eur(5000))
	for range 30 {
		if a := bad.must(bad.with(0, wrongProof)); a.p4.Reason != protocol.CodeSignature {
			t.Fatalf("forged signature: code %d", a.p4.Reason)
		}
	}
	if g := b.guard(alice); g.Wrong != 0 {
		t.Fatalf("bad signatures were counted: %d", g.Wrong)
	}
	wrong := func() answer {
		s := alice.challenge(payment, eur(5000))
		return s.must(s.with(0, wrongProof))
	}
	expect(t, forged.must(m3), protocol.ResultRetry, protocol.CodePassword)
	alice.counter += 100 // above the forgers'
	for i := range 3 {
		a := wrong()
		expect(t, a, protocol.ResultRetry, protocol.CodePassword)
		if want := uint64(min(2, 3-i)); *a.p4.TriesLeft != want {
			t.Errorf("after %d wrong: %d tries left, want %d", i+2, *a.p4.TriesLeft, want)
		}
	}
	a := wrong()
	expect(t, a, protocol.ResultDenied, protocol.CodeLocked)
	if a.p4.Retry == nil || *a.p4.Retry != 30 {
		t.Fatalf("locked for %v, want 30 s", a.p4.Retry)
	}
	for wait := 30; b.guard(alice).Wrong < store.HardLock; wait = min(wait*2, 3600) {
		s := alice.challenge(payment, eur(5000))
		locked := s.must(s.with(0, nil)) // the right one does not help now
		expect(t, locked, protocol.ResultDenied, protocol.CodeLocked)
		if locked.p4.Retry == nil || *locked.p4.Retry != uint64(wait) {
			t.Fatalf("after %d wrong: locked for %v, want %d s", b.guard(alice).Wrong, locked.p4.Retry, wait)
		}
		b.clock.advance(time.Duration(wait) * time.Second)
		wrong()
	}
	b.clock.advance(48 * time.Hour)
	s := alice.challenge(payment, eur(5000))
	a = s.must(s.with(0, nil))
	expect(t, a, protocol.ResultDenied, protocol.CodeLocked)
	if a.p4.Retry != nil {
		t.Errorf("hard lock with a time to wait: %d", *a.p4.Retry)
	}
	if _, err := b.Unlock(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	expect(t, s.must(s.with(0, nil)), protocol.ResultApproved, 0)
}

// TestParallelGuesses: however many guess at once, no more than the free tries are
// checked.
func TestParallelGuesses(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	var sessions []*session
	for range 64 {
		sessions = append(sessions, alice.challenge(payment, eur(5000)))
	}
	var all sync.WaitGroup
	for _, s := range sessions {
		all.Go(func() { _, _ = s.send(s.with(0, wrongProof)) })
	}
	all.Wait()
	if g := b.guard(alice); g.Wrong != store.FreeTries {
		t.Errorf("%d guesses were checked, want %d", g.Wrong, store.FreeTries)
	}
}

func TestNoPassword(t *testing.T) {
	b := newBench(t)
	bob := b.enrol("bob")
	s := bob.challenge(payment, eur(5000))
	expect(t, s.must(s.m3(protocol.Approve)), protocol.ResultDenied, protocol.CodePolicy)
	alice := b.enrolFull("alice")
	s = alice.challenge(payment, eur(5000))
	expect(t, s.must(s.m3(protocol.Approve)), protocol.ResultDenied, protocol.CodePassword)
	s = alice.challenge(payment, eur(5000))
	expect(t, s.must(s.m3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
	if g := b.guard(alice); g.Wrong != 0 {
		t.Errorf("%d tries counted where no password was given", g.Wrong)
	}
}

func TestVault(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	s := alice.challenge(vault, nil)
	if s.p2.Level != 3 || s.p2.Factors != 7 {
		t.Fatalf("level %d, factors %s", s.p2.Level, s.p2.Factors)
	}
	plain := *s
	plain.p2.Factors = 3 // signs with the ordinary key
	expect(t, plain.must(plain.with(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
	s = alice.challenge(vault, nil)
	a := s.must(s.with(0, nil))
	expect(t, a, protocol.ResultApproved, 0)
	if d, err := s.check(3, vault).Verify(a.res.Decision); err != nil || d.Factors != 7 {
		t.Errorf("factors %s, %v", d.Factors, err)
	}
}

// TestUnattested: a UV key whose attestation policy does not accept is no factor.
func TestUnattested(t *testing.T) {
	b := newBench(t)
	b.addPolicy(2, []byte("[uv]\nattestation = []\n[[service]]\nid = 300\nname = \"vault\"\nlevel = 3\n"))
	b.restart()
	alice := b.enrolFull("alice")
	s := alice.challenge(vault, nil)
	expect(t, s.must(s.with(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
}

// TestAttestationHook: the format that the hook names is what policy accepts or not.
func TestAttestationHook(t *testing.T) {
	b := newBench(t)
	b.addPolicy(2, []byte("[uv]\nattestation = [\"good\"]\n[[service]]\nid = 300\nname = \"vault\"\nlevel = 3\n"))
	a, err := appliance.New(t.Context(), appliance.Config{
		Store: b.store, Keys: b.keys, Logger: hclog.NewNullLogger(), Now: b.clock.Now,
		Attest: func(_ context.Context, a appliance.Attestation) (string, error) {
			if string(a.Statement) == "genuine" {
				return "good", nil
			}
			return "", errors.New("not genuine")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Appliance = a
	for statement, want := range map[string]protocol.Code{"genuine": 0, "forged": protocol.CodePolicy, "": protocol.CodePolicy} {
		p := b.fullPhone()
		p.attestation = []byte(statement)
		b.enrolAs("phone-"+statement, p)
		s := p.challenge(vault, nil)
		if a := s.must(s.with(0, nil)); a.p4.Reason != want {
			t.Errorf("attestation %q: code %d, want %d", statement, a.p4.Reason, want)
		}
	}
}

func TestStrict(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	s, err := alice.applyWith(alice.p1(vault), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{vault}}, Link: deviceapi.LinkWire, Strict: true,
	})
	if err != nil || s.p2.Factors != 23 {
		t.Fatalf("factors %s, %v", s.p2.Factors, err)
	}
	a := s.must(s.with(0, nil))
	check := s.check(3, vault)
	check.Strict = true
	if _, err := check.Verify(a.res.Decision); err != nil {
		t.Error(err)
	}
}

// TestStatus settles an unknown outcome, for good.
func TestStatus(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	known, lost := alice.challenge(door, nil), alice.challenge(door, nil)
	expect(t, known.must(known.m3(protocol.Approve)), protocol.ResultApproved, 0)
	ask := func(serial protocol.Serial) message.AskedResult {
		t.Helper()
		p1 := alice.p1(protocol.ServiceStatus)
		p1.Asked = &serial
		s, err := alice.apply(p1, deviceapi.Order{Services: []protocol.Service{door, protocol.ServiceStatus}})
		if err != nil {
			t.Fatal(err)
		}
		a := s.must(s.m3(protocol.Approve))
		expect(t, a, protocol.ResultApproved, 0)
		if a.res.Decision != nil || a.p4.Asked == nil {
			t.Fatalf("decision of %d bytes, asked %v", len(a.res.Decision), a.p4.Asked)
		}
		return *a.p4.Asked
	}
	if got := ask(known.p1.Serial); got != (message.AskedResult{Result: protocol.ResultApproved}) {
		t.Errorf("approved serial: %+v", got)
	}
	denied := message.AskedResult{Result: protocol.ResultDenied, Reason: protocol.CodeExpired}
	if got := ask(lost.p1.Serial); got != denied {
		t.Errorf("lost serial: %+v", got)
	}
	if a := lost.must(lost.m3(protocol.Approve)); a.p4.Result != protocol.ResultDenied {
		t.Errorf("the lost M3 arrived after its status was told, and was answered %s", a.p4.Result)
	}
	if got := ask(lost.p1.Serial); got != denied {
		t.Errorf("asked again: %+v", got)
	}
}

func TestDryRun(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	s, err := alice.apply(alice.p1(protocol.ServiceDryRun), deviceapi.Order{Services: []protocol.Service{door, protocol.ServiceDryRun}})
	if err != nil {
		t.Fatal(err)
	}
	a := s.must(s.m3(protocol.Approve))
	expect(t, a, protocol.ResultApproved, 0)
	if a.res.Decision != nil {
		t.Errorf("a dry run gave a decision of %d bytes", len(a.res.Decision))
	}
}

// pending runs a first approval of 10,000.00 EUR.
func (b *bench) pending(p *phone) (*session, answer) {
	b.Helper()
	s := p.challenge(payment, eur(1_000_000))
	if s.p2.Level != 4 || s.p2.Factors != 15 {
		b.Fatalf("level %d, factors %s", s.p2.Level, s.p2.Factors)
	}
	a := s.must(s.with(0, nil))
	expect(b.T, a, protocol.ResultPending, protocol.CodePending)
	if a.res.NextHandle == nil || a.res.Decision == nil {
		b.Fatalf("pending with a handle of %d bytes and a decision of %d", len(a.res.NextHandle), len(a.res.Decision))
	}
	return s, a
}

// second is the challenge to a second approver.
func (p *phone) second(handle []byte) *session {
	p.b.Helper()
	s, err := p.applyWith(p.p1(protocol.ServiceCoApproval), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(1_000_000)}, Link: deviceapi.LinkWire, Handle: handle,
	})
	if err != nil || s.p2.Code != 0 {
		p.b.Fatalf("second challenge: code %d, %v", s.p2.Code, err)
	}
	return s
}

func TestSecondApprover(t *testing.T) {
	b := newBench(t)
	alice, bob, carol := b.enrolFull("alice", "approver"), b.enrolFull("bob", "approver"), b.enrolFull("carol")
	first, pending := b.pending(alice)
	same := alice.second(pending.res.NextHandle)
	expect(t, same.must(same.with(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
	stranger := carol.second(pending.res.NextHandle)
	expect(t, stranger.must(stranger.with(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
	s := bob.second(pending.res.NextHandle)
	if *s.p2.FirstStatement != first.stmt.Hash() || *s.p2.FirstService != payment || *s.p2.Amount != *eur(1_000_000) {
		t.Fatalf("second challenge is %+v", s.p2)
	}
	a := s.must(s.with(0, nil))
	expect(t, a, protocol.ResultApproved, 0)
	check := s.check(4, payment)
	chal, err := message.ChallengeOf(first.res.M2)
	if err != nil {
		t.Fatal(err)
	}
	check.Challenges, check.Amount = []protocol.Challenge{chal, check.Challenges[0]}, eur(1_000_000)
	d, err := check.Verify(a.res.Decision)
	if err != nil || d.Factors != 15 || d.Statement != first.stmt.Hash() || *d.SecondStatement != s.stmt.Hash() {
		t.Errorf("decision %+v, %v", d, err)
	}
	late := bob.second(pending.res.NextHandle)
	expect(t, late.must(late.with(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
	expect(t, first.must(first.with(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
}

func TestSecondRefusesAndExpires(t *testing.T) {
	b := newBench(t)
	alice, bob := b.enrolFull("alice"), b.enrolFull("bob", "approver")
	_, pending := b.pending(alice)
	s := bob.second(pending.res.NextHandle)
	expect(t, s.must(s.m3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
	late := bob.second(pending.res.NextHandle)
	expect(t, late.must(late.with(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
	_, pending = b.pending(alice)
	b.clock.advance(301 * time.Second)
	s = bob.second(pending.res.NextHandle)
	expect(t, s.must(s.with(0, nil)), protocol.ResultDenied, protocol.CodeExpired)
}

// TestRefusalsLookAlike: at level 2 an unknown client, a suspended one and a wrong
// password get an M4 of one size, at one time.
func TestRefusalsLookAlike(t *testing.T) {
	b := newBench(t)
	alice, sam, mallory := b.enrolFull("alice"), b.enrolFull("sam"), b.stranger()
	mallory.k = alice.k
	sessions := map[string]*session{}
	for name, p := range map[string]*phone{"wrong password": alice, "suspended": sam, "unknown": mallory} {
		sessions[name] = p.challenge(payment, eur(5000))
	}
	if _, err := b.SetClientStatus(t.Context(), "sam", store.Suspended); err != nil {
		t.Fatal(err)
	}
	for name, s := range sessions {
		a := s.must(s.with(0, wrongProof))
		if after := b.AnswerAfter(a.res); after != 50*time.Millisecond {
			t.Errorf("%s: answered after %v, want 50 ms", name, after)
		}
		if a.p4.Result == protocol.ResultApproved || len(a.res.M4) != 33 {
			t.Errorf("%s: %s in an M4 of %d bytes, want a refusal in 33", name, a.p4.Result, len(a.res.M4))
		}
	}
}
