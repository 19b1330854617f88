package authorize_test

import (
	"sync"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
)

func TestPassword(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	s := alice.Challenge(payment, eur(5000))
	if s.P2.Level != 2 || s.P2.Factors != 3 {
		t.Fatalf("level %d, factors %s", s.P2.Level, s.P2.Factors)
	}
	first := s.With(0, wrongProof)
	a := s.Must(first)
	expect(t, a, protocol.ResultRetry, protocol.CodePassword)
	if *a.P4.TriesLeft != 2 || a.Res.Decision != nil {
		t.Errorf("%d tries left, decision of %d bytes", *a.P4.TriesLeft, len(a.Res.Decision))
	}
	again := s.Must(first)
	expect(t, again, protocol.ResultRetry, protocol.CodePassword)
	if *again.P4.TriesLeft != 2 || b.GuardOf(alice).Wrong != 1 {
		t.Errorf("a repeat: %d tries left, %d counted; want 2 and 1", *again.P4.TriesLeft, b.GuardOf(alice).Wrong)
	}
	expect(t, s.Must(s.With(2, wrongProof)), protocol.ResultDenied, protocol.CodeSerial)
	expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
	a = s.Must(s.With(1, nil))
	expect(t, a, protocol.ResultApproved, 0)
	check := s.Check(2, payment)
	check.Amount = eur(5000)
	d, err := check.Verify(a.Res.Decision)
	if err != nil || d.Factors != 3 {
		t.Errorf("factors %s, %v", d.Factors, err)
	}
	if g := b.GuardOf(alice); g.Wrong != 0 || !g.Until.IsZero() {
		t.Errorf("after the right one the guard is %+v", g)
	}
	b.Clock.Advance(time.Hour)
	expect(t, s.Must(first), protocol.ResultRetry, protocol.CodePassword)
}

// TestPasswordRepeatedAtOnce: the same M3 a hundred times concurrently makes one approval, and
// every copy gets it.
func TestPasswordRepeatedAtOnce(t *testing.T) {
	b := appliancetest.New(t)
	s := b.EnrolFull("alice").Challenge(payment, eur(5000))
	m3 := s.With(0, nil)
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
	close(answers)
	n := 0
	for a := range answers {
		expect(t, a, protocol.ResultApproved, 0)
		n++
	}
	if tally := b.Tally(); n != 100 || tally.Decisions != 1 {
		t.Errorf("%d approvals told, %d decisions", n, tally.Decisions)
	}
	if rec := b.LastRecord(); rec.Kind != audit.KindDecision {
		t.Errorf("last record is %q", rec.Kind)
	}
}

// TestNoVerifier: a client without a password gets its own code, and no try is counted.
func TestNoVerifier(t *testing.T) {
	b := appliancetest.New(t)
	bob := b.EnrolPhone("bob")
	s := bob.Challenge(payment, eur(5000))
	expect(t, s.Must(s.With(0, wrongProof)), protocol.ResultDenied, protocol.CodePolicy)
	if g := b.GuardOf(bob); g.Wrong != 0 {
		t.Errorf("%d tries counted", g.Wrong)
	}
}

// TestThirdWrong: the third wrong password ends the challenge, and the serial.
func TestThirdWrong(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	s := alice.Challenge(payment, eur(5000))
	expect(t, s.Must(s.With(0, wrongProof)), protocol.ResultRetry, protocol.CodePassword)
	expect(t, s.Must(s.With(1, wrongProof)), protocol.ResultRetry, protocol.CodePassword)
	expect(t, s.Must(s.With(2, wrongProof)), protocol.ResultDenied, protocol.CodePassword)
	expect(t, s.Must(s.With(3, nil)), protocol.ResultDenied, protocol.CodeSerial)
	if tally := b.Tally(); tally.Decisions != 1 {
		t.Errorf("%d decisions, want the denial", tally.Decisions)
	}
}

// TestLockOut: five wrong tries start the back-off, twenty lock for good, an
// administrator unlocks. A bad signature never counts.
func TestLockOut(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	forged := alice.Challenge(payment, eur(5000))
	m3 := forged.With(0, wrongProof)
	mallory := *alice
	mallory.Key = appliancetest.NewSoftKey()
	bad := mallory.Challenge(payment, eur(5000))
	for range 30 {
		if a := bad.Must(bad.With(0, wrongProof)); a.P4.Reason != protocol.CodeSignature {
			t.Fatalf("forged signature: code %d", a.P4.Reason)
		}
	}
	if g := b.GuardOf(alice); g.Wrong != 0 {
		t.Fatalf("bad signatures were counted: %d", g.Wrong)
	}
	wrong := func() appliancetest.Answer {
		s := alice.Challenge(payment, eur(5000))
		return s.Must(s.With(0, wrongProof))
	}
	expect(t, forged.Must(m3), protocol.ResultRetry, protocol.CodePassword)
	alice.Counter += 100 // above the counters of the forgeries
	for i := range 3 {
		a := wrong()
		expect(t, a, protocol.ResultRetry, protocol.CodePassword)
		if want := uint64(min(2, 3-i)); *a.P4.TriesLeft != want {
			t.Errorf("after %d wrong: %d tries left, want %d", i+2, *a.P4.TriesLeft, want)
		}
	}
	a := wrong()
	expect(t, a, protocol.ResultDenied, protocol.CodeLocked)
	if a.P4.Retry == nil || *a.P4.Retry != 30 {
		t.Fatalf("locked for %v, want 30 s", a.P4.Retry)
	}
	for wait := 30; b.GuardOf(alice).Wrong < store.HardLock; wait = min(wait*2, 3600) {
		s := alice.Challenge(payment, eur(5000))
		locked := s.Must(s.With(0, nil)) // even the right one does not help now
		expect(t, locked, protocol.ResultDenied, protocol.CodeLocked)
		if locked.P4.Retry == nil || *locked.P4.Retry != uint64(wait) {
			t.Fatalf("after %d wrong: locked for %v, want %d s", b.GuardOf(alice).Wrong, locked.P4.Retry, wait)
		}
		b.Clock.Advance(time.Duration(wait) * time.Second)
		wrong()
	}
	b.Clock.Advance(48 * time.Hour)
	s := alice.Challenge(payment, eur(5000))
	a = s.Must(s.With(0, nil))
	expect(t, a, protocol.ResultDenied, protocol.CodeLocked)
	if a.P4.Retry != nil {
		t.Errorf("hard lock with a time to wait: %d", *a.P4.Retry)
	}
	if _, err := b.Parties.Unlock(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	expect(t, s.Must(s.With(0, nil)), protocol.ResultApproved, 0)
}

// TestParallelGuesses: concurrent guesses get no more checks than the free tries.
func TestParallelGuesses(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	var sessions []*appliancetest.Session
	for range 64 {
		sessions = append(sessions, alice.Challenge(payment, eur(5000)))
	}
	var all sync.WaitGroup
	for _, s := range sessions {
		all.Go(func() { _, _ = s.Send(s.With(0, wrongProof)) })
	}
	all.Wait()
	if g := b.GuardOf(alice); g.Wrong != store.FreeTries {
		t.Errorf("%d guesses were checked, want %d", g.Wrong, store.FreeTries)
	}
}

func TestNoPassword(t *testing.T) {
	b := appliancetest.New(t)
	bob := b.EnrolPhone("bob")
	s := bob.Challenge(payment, eur(5000))
	expect(t, s.Must(s.M3(protocol.Approve)), protocol.ResultDenied, protocol.CodePolicy)
	alice := b.EnrolFull("alice")
	s = alice.Challenge(payment, eur(5000))
	expect(t, s.Must(s.M3(protocol.Approve)), protocol.ResultDenied, protocol.CodePassword)
	s = alice.Challenge(payment, eur(5000))
	expect(t, s.Must(s.M3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
	if g := b.GuardOf(alice); g.Wrong != 0 {
		t.Errorf("%d tries counted where no password was given", g.Wrong)
	}
}

func TestVault(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	s := alice.Challenge(vault, nil)
	if s.P2.Level != 3 || s.P2.Factors != 7 {
		t.Fatalf("level %d, factors %s", s.P2.Level, s.P2.Factors)
	}
	plain := *s
	plain.P2.Factors = 3 // signs with the ordinary key
	expect(t, plain.Must(plain.With(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
	s = alice.Challenge(vault, nil)
	a := s.Must(s.With(0, nil))
	expect(t, a, protocol.ResultApproved, 0)
	if d, err := s.Check(3, vault).Verify(a.Res.Decision); err != nil || d.Factors != 7 {
		t.Errorf("factors %s, %v", d.Factors, err)
	}
}

func TestStrict(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	s, err := alice.ApplyWith(alice.P1(vault), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{vault}}, Link: deviceapi.LinkWire, Strict: true,
	})
	if err != nil || s.P2.Factors != 23 {
		t.Fatalf("factors %s, %v", s.P2.Factors, err)
	}
	a := s.Must(s.With(0, nil))
	check := s.Check(3, vault)
	check.Strict = true
	if _, err := check.Verify(a.Res.Decision); err != nil {
		t.Error(err)
	}
}

// TestStatus settles an unknown outcome, for good.
func TestStatus(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	known, lost := alice.Challenge(door, nil), alice.Challenge(door, nil)
	expect(t, known.Must(known.M3(protocol.Approve)), protocol.ResultApproved, 0)
	ask := func(serial protocol.Serial) message.AskedResult {
		t.Helper()
		p1 := alice.P1(protocol.ServiceStatus)
		p1.Asked = &serial
		s, err := alice.Apply(p1, deviceapi.Order{Services: []protocol.Service{door, protocol.ServiceStatus}})
		if err != nil {
			t.Fatal(err)
		}
		a := s.Must(s.M3(protocol.Approve))
		expect(t, a, protocol.ResultApproved, 0)
		if a.Res.Decision != nil || a.P4.Asked == nil {
			t.Fatalf("decision of %d bytes, asked %v", len(a.Res.Decision), a.P4.Asked)
		}
		return *a.P4.Asked
	}
	if got := ask(known.P1.Serial); got != (message.AskedResult{Result: protocol.ResultApproved}) {
		t.Errorf("approved serial: %+v", got)
	}
	denied := message.AskedResult{Result: protocol.ResultDenied, Reason: protocol.CodeExpired}
	if got := ask(lost.P1.Serial); got != denied {
		t.Errorf("lost serial: %+v", got)
	}
	if a := lost.Must(lost.M3(protocol.Approve)); a.P4.Result != protocol.ResultDenied {
		t.Errorf("the lost M3 arrived after its status was told, and was answered %s", a.P4.Result)
	}
	if got := ask(lost.P1.Serial); got != denied {
		t.Errorf("asked again: %+v", got)
	}
}

func TestDryRun(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	s, err := alice.Apply(alice.P1(protocol.ServiceDryRun), deviceapi.Order{Services: []protocol.Service{door, protocol.ServiceDryRun}})
	if err != nil {
		t.Fatal(err)
	}
	a := s.Must(s.M3(protocol.Approve))
	expect(t, a, protocol.ResultApproved, 0)
	if a.Res.Decision != nil {
		t.Errorf("a dry run gave a decision of %d bytes", len(a.Res.Decision))
	}
}

func TestSecondApprover(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob, carol := b.EnrolFull("alice", "approver"), b.EnrolFull("bob", "approver"), b.EnrolFull("carol")
	first, pending := b.Pending(alice)
	same := alice.Second(pending.Res.NextHandle)
	expect(t, same.Must(same.With(0, nil)), protocol.ResultDenied, protocol.CodeOwnApproval)
	stranger := carol.Second(pending.Res.NextHandle)
	expect(t, stranger.Must(stranger.With(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
	s := bob.Second(pending.Res.NextHandle)
	if *s.P2.FirstStatement != first.Statement.Hash() || *s.P2.FirstService != payment || *s.P2.Amount != *eur(1_000_000) {
		t.Fatalf("second challenge is %+v", s.P2)
	}
	a := s.Must(s.With(0, nil))
	expect(t, a, protocol.ResultApproved, 0)
	check := s.Check(4, payment)
	chal, err := message.ChallengeOf(first.Res.M2)
	if err != nil {
		t.Fatal(err)
	}
	check.Challenges, check.Amount = []protocol.Challenge{chal, check.Challenges[0]}, eur(1_000_000)
	d, err := check.Verify(a.Res.Decision)
	if err != nil || d.Factors != 15 || d.Statement != first.Statement.Hash() || *d.SecondStatement != s.Statement.Hash() {
		t.Errorf("decision %+v, %v", d, err)
	}
	late := bob.Second(pending.Res.NextHandle)
	expect(t, late.Must(late.With(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
	expect(t, first.Must(first.With(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
}

// TestHandleOfAnotherService: the handle of a pending approval means nothing to an ordinary service.
func TestHandleOfAnotherService(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolFull("alice", "approver"), b.EnrolFull("bob", "approver")
	_, pending := b.Pending(alice)
	s, err := bob.ApplyWith(bob.P1(door), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Handle: pending.Res.NextHandle,
	})
	if err != nil || s.P2.Code != 0 || s.P2.FirstStatement != nil {
		t.Fatalf("code %d, %v, first statement %x", s.P2.Code, err, s.P2.FirstStatement)
	}
	d, err := s.Verify(s.Must(s.M3(protocol.Approve)).Res.Decision, nil)
	if err != nil || d.Service != door || d.SecondStatement != nil || d.Statement != s.Statement.Hash() {
		t.Errorf("decision for service %d, second statement %x: %v", d.Service, d.SecondStatement, err)
	}
	second := bob.Second(pending.Res.NextHandle)
	expect(t, second.Must(second.With(0, nil)), protocol.ResultApproved, 0)
}

// TestSecondOrdered: a second approver is asked only for what was signed first, at a level up to the first.
func TestSecondOrdered(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolFull("alice", "approver"), b.EnrolFull("bob", "approver")
	_, pending := b.Pending(alice)
	order := deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(1_000_000)}
	for name, c := range map[string]struct {
		change func(*message.P1, *deviceapi.ApplyRequest)
		want   protocol.Code
	}{
		"the same":       {func(*message.P1, *deviceapi.ApplyRequest) {}, 0},
		"no amount":      {func(_ *message.P1, r *deviceapi.ApplyRequest) { r.Order.Amount = nil }, 0},
		"another amount": {func(_ *message.P1, r *deviceapi.ApplyRequest) { r.Order.Amount = eur(1_000_001) }, protocol.CodeAmountDiffers},
		"another currency": {func(_ *message.P1, r *deviceapi.ApplyRequest) {
			r.Order.Amount = &protocol.Amount{Minor: 1_000_000, Currency: "USD"}
		}, protocol.CodeAmountDiffers},
		"another text":       {func(_ *message.P1, r *deviceapi.ApplyRequest) { r.Order.Text = "for Eve" }, protocol.CodeTextDiffers},
		"proposed otherwise": {func(p *message.P1, _ *deviceapi.ApplyRequest) { p.Proposal = &message.Proposal{Amount: eur(1)} }, protocol.CodeAmountDiffers},
		"another service":    {func(_ *message.P1, r *deviceapi.ApplyRequest) { r.Order.Services = []protocol.Service{vault} }, protocol.CodeService},
		"no handle":          {func(_ *message.P1, r *deviceapi.ApplyRequest) { r.Handle = nil }, protocol.CodeService},
		"at the first level": {func(p *message.P1, _ *deviceapi.ApplyRequest) { p.Level = 4 }, 0},
		"above every level":  {func(p *message.P1, _ *deviceapi.ApplyRequest) { p.Level = 5 }, protocol.CodeLevel},
	} {
		p1, req := bob.P1(protocol.ServiceCoApproval), deviceapi.ApplyRequest{Order: order, Link: deviceapi.LinkWire, Handle: pending.Res.NextHandle}
		c.change(&p1, &req)
		s, err := bob.ApplyWith(p1, req)
		if err != nil || s.P2.Code != c.want {
			t.Errorf("%s: code %d, %v; want code %d", name, s.P2.Code, err, c.want)
		}
		if c.want == 0 && (s.P2.Amount == nil || *s.P2.Amount != *eur(1_000_000) || s.P2.Level != 4) {
			t.Errorf("%s: bob is shown %v at level %d", name, s.P2.Amount, s.P2.Level)
		}
	}
}

func TestSecondRefusesAndExpires(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolFull("alice"), b.EnrolFull("bob", "approver")
	_, pending := b.Pending(alice)
	s := bob.Second(pending.Res.NextHandle)
	expect(t, s.Must(s.M3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
	late := bob.Second(pending.Res.NextHandle)
	expect(t, late.Must(late.With(0, nil)), protocol.ResultDenied, protocol.CodeSerial)
	_, pending = b.Pending(alice)
	b.Clock.Advance(301 * time.Second)
	s = bob.Second(pending.Res.NextHandle)
	expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeExpired)
}

// TestRefusalsLookAlike: at level 2 an unknown client, a suspended one and a wrong password get
// an M4 of the same size at the same time.
func TestRefusalsLookAlike(t *testing.T) {
	b := appliancetest.New(t)
	alice, sam, mallory := b.EnrolFull("alice"), b.EnrolFull("sam"), b.Stranger()
	mallory.Verifier = alice.Verifier
	sessions := map[string]*appliancetest.Session{}
	for name, p := range map[string]*appliancetest.Phone{"wrong password": alice, "suspended": sam, "unknown": mallory} {
		sessions[name] = p.Challenge(payment, eur(5000))
	}
	if _, err := b.Parties.SetClientStatus(t.Context(), "sam", store.Suspended); err != nil {
		t.Fatal(err)
	}
	for name, s := range sessions {
		a := s.Must(s.With(0, wrongProof))
		if after := b.Authorize.AnswerAfter(a.Res); after != 50*time.Millisecond {
			t.Errorf("%s: answered after %v, want 50 ms", name, after)
		}
		if a.P4.Result == protocol.ResultApproved || len(a.Res.M4) != 33 {
			t.Errorf("%s: %s in an M4 of %d bytes, want a refusal in 33", name, a.P4.Result, len(a.Res.M4))
		}
	}
}
