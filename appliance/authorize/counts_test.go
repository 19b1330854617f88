package authorize_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/appliance/authorize"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// recorded returns the records of a kind, the newest last.
func recorded(t *testing.T, b *appliancetest.Bench, kind string) (found []audit.Record) {
	t.Helper()
	all, err := b.Records(t.Context(), 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range all {
		if rec.Kind == kind {
			found = append(found, rec)
		}
	}
	return found
}

// lock locks a phone for good, with wrong passwords.
func lock(t *testing.T, b *appliancetest.Bench, p *appliancetest.Phone) {
	t.Helper()
	for b.GuardOf(p).Wrong < store.HardLock {
		s := p.Challenge(payment, eur(6000))
		if a := s.Must(s.With(0, wrongProof)); a.P4.Reason == protocol.CodeLocked {
			b.Clock.Advance(time.Hour)
		}
	}
	b.Authorize.FlushCounts(t.Context())
}

// TestRepeatedRefusals: a locked phone that sends two hundred countersignatures under one serial makes
// two audit records: the first refusal, and the number of the others.
func TestRepeatedRefusals(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	lock(t, b, alice)
	before, full := b.Tally().Records, len(recorded(t, b, audit.KindRefused))
	s := alice.Challenge(payment, eur(6000))
	for range 200 {
		expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeLocked)
	}
	if refused := recorded(t, b, audit.KindRefused); len(refused) != full+1 || refused[full].Words()["reason"] != uint64(protocol.CodeLocked) {
		t.Fatalf("%d records of 200 refusals", len(refused)-full)
	}
	if n := b.Tally().Records; n != before+1 {
		t.Fatalf("%d records before the minute is over", n-before)
	}
	b.Authorize.FlushCounts(t.Context())
	b.Authorize.FlushCounts(t.Context())
	counted := recorded(t, b, audit.KindRepeats)
	if len(counted) == 0 || b.Tally().Records != before+2 {
		t.Fatalf("%d records in all, %d of counts", b.Tally().Records-before, len(counted))
	}
	rec := counted[len(counted)-1]
	serials, _ := rec.Words()[protocol.CodeLocked.String()].(map[string]any)
	if rec.Subject != "client/"+alice.ID.String() || len(rec.Words()) != 1 || serials[s.P1.Serial.String()] != uint64(199) {
		t.Errorf("%s: %v", rec.Subject, rec.Words())
	}
}

// TestRefusalsOfManySerials: many serials make no more records. Another code, and another client, are
// recorded all the same.
func TestRefusalsOfManySerials(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolFull("alice"), b.EnrolFull("bob")
	lock(t, b, alice)
	lock(t, b, bob)
	full := len(recorded(t, b, audit.KindRefused))
	for range 50 {
		s := alice.Challenge(payment, eur(6000))
		expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeLocked)
	}
	if n := len(recorded(t, b, audit.KindRefused)) - full; n != 3 {
		t.Errorf("%d records of 50 serials, want 3", n)
	}
	s := bob.Challenge(payment, eur(6000))
	expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeLocked)
	older := alice.Challenge(door, nil)
	expect(t, alice.Challenge(door, nil).Approve(), protocol.ResultApproved, 0)
	expect(t, older.Approve(), protocol.ResultDenied, protocol.CodeSerial)
	alice.Counter-- // as a copied phone would
	clone := alice.Challenge(door, nil)
	for range 20 {
		expect(t, clone.Approve(), protocol.ResultDenied, protocol.CodeClone)
	}
	refused := recorded(t, b, audit.KindRefused)
	if len(refused) != full+6 || refused[len(refused)-1].Words()["reason"] != uint64(protocol.CodeClone) {
		t.Errorf("%d records, want 6 with the clone alarm last", len(refused)-full)
	}
	b.Authorize.FlushCounts(t.Context())
	counted := recorded(t, b, audit.KindRepeats)
	words := counted[len(counted)-1].Words()
	locked, _ := words[protocol.CodeLocked.String()].(map[string]any)
	cloned, _ := words[protocol.CodeClone.String()].(map[string]any)
	if locked["further serials"] != uint64(47) || cloned[clone.P1.Serial.String()] != uint64(19) {
		t.Errorf("counted %v", words)
	}
	// The minute after, what went on is still counted, and what is new is recorded.
	expect(t, clone.Approve(), protocol.ResultDenied, protocol.CodeClone)
	s = alice.Challenge(payment, eur(6000))
	expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeLocked)
	if n := len(recorded(t, b, audit.KindRefused)); n != len(refused)+1 {
		t.Errorf("%d records more in the next minute, want 1", n-len(refused))
	}
}

// failing is a store that takes no records.
type failing struct {
	store.Store
	fails bool
}

func (f *failing) Append(ctx context.Context, rec audit.Record) error {
	if f.fails {
		return store.ErrUnavailable
	}
	return f.Store.Append(ctx, rec)
}

// TestCountsAreKept: counts that the store does not take are written later, and a first refusal that was
// not recorded is answered with an error and recorded the next time.
func TestCountsAreKept(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	lock(t, b, alice)
	s := &failing{Store: b.Store, fails: true}
	b.Restart(func(c *appliance.Config) { c.Store = s })
	full, counts := len(recorded(t, b, audit.KindRefused)), len(recorded(t, b, audit.KindRepeats))
	asked := alice.Challenge(payment, eur(6000))
	if _, err := asked.Send(asked.With(0, nil)); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("a refusal that was not recorded: %v", err)
	}
	s.fails = false
	for range 3 {
		expect(t, asked.Must(asked.With(0, nil)), protocol.ResultDenied, protocol.CodeLocked)
	}
	s.fails = true
	b.Authorize.FlushCounts(t.Context())
	s.fails = false
	b.Authorize.FlushCounts(t.Context())
	refused, counted := recorded(t, b, audit.KindRefused), recorded(t, b, audit.KindRepeats)
	if len(refused) != full+1 || len(counted) != counts+1 {
		t.Fatalf("%d refusals and %d counts were written", len(refused)-full, len(counted)-counts)
	}
	serials, _ := counted[counts].Words()[protocol.CodeLocked.String()].(map[string]any)
	if serials[asked.P1.Serial.String()] != uint64(2) {
		t.Errorf("%v", counted[counts].Words())
	}
}

// TestRefusalsOfManyClients: refusals of clients beyond the bound make one record in all, also if the
// store takes it only a minute later. A client within the bound has its own.
func TestRefusalsOfManyClients(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob, cleo := b.EnrolFull("alice"), b.EnrolFull("bob"), b.EnrolFull("cleo")
	for _, one := range []*appliancetest.Phone{alice, bob, cleo} {
		lock(t, b, one)
	}
	s := &failing{Store: b.Store}
	b.Restart(func(c *appliance.Config) { c.Store = s })
	authorize.SetRefusedClients(b.Authorize, 1)
	full, counts := len(recorded(t, b, audit.KindRefused)), len(recorded(t, b, audit.KindRepeats))
	refusedBy := func(p *appliancetest.Phone, n int) {
		for range n {
			asked := p.Challenge(payment, eur(6000))
			expect(t, asked.Must(asked.With(0, nil)), protocol.ResultDenied, protocol.CodeLocked)
		}
	}
	refusedBy(alice, 1)
	refusedBy(bob, 30)
	refusedBy(cleo, 20)
	refused := recorded(t, b, audit.KindRefused)
	if len(refused) != full+1 || refused[full].Subject != "client/"+alice.ID.String() {
		t.Fatalf("%d records of 51 refusals, want that of alice", len(refused)-full)
	}
	s.fails = true
	b.Authorize.FlushCounts(t.Context())
	s.fails = false
	for range 2 {
		b.Authorize.FlushCounts(t.Context())
	}
	counted := recorded(t, b, audit.KindRepeats)
	if len(counted) != counts+1 {
		t.Fatalf("%d records of counts", len(counted)-counts)
	}
	locked, _ := counted[counts].Words()[protocol.CodeLocked.String()].(map[string]any)
	if counted[counts].Subject != "other clients" || locked["further serials"] != uint64(50) {
		t.Errorf("%s: %v", counted[counts].Subject, counted[counts].Words())
	}
	refusedBy(bob, 1) // the minute after there is room
	if n := len(recorded(t, b, audit.KindRefused)); n != full+2 {
		t.Errorf("%d records of refusals, want 2", n-full)
	}
}
