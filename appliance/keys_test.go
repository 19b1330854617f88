package appliance_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/receipt"
)

// step takes a step that must be possible.
func (b *bench) step(verb keyplan.Verb, ref string) {
	b.Helper()
	if _, err := b.tryStep(keyplan.Step{Verb: verb}, ref); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) tryStep(s keyplan.Step, ref string) ([]keyplan.View, error) {
	b.Helper()
	var err error
	if s.Name, s.Version, err = keyplan.ParseRef(ref); err != nil {
		b.Fatal(err)
	}
	return b.ChangeKey(b.Context(), s)
}

func (b *bench) version(name string) uint64 {
	b.Helper()
	k, err := b.keys.Current(name, b.clock.Now())
	if err != nil {
		b.Fatal(err)
	}
	return k.Version
}

// runUntil runs the appliance's background until a condition holds.
func (b *bench) runUntil(what string, ok func() bool) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	ended := make(chan struct{})
	go func() { defer close(ended); b.Appliance.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			b.Fatalf("never: %s", what)
		}
	}
}

// TestMACRotation: handles under way and pairwise ids outlive a version of mac, records
// are made anew, and only then can it be retired.
func TestMACRotation(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	first, err := alice.challenge(door, nil).decision()
	if err != nil {
		t.Fatal(err)
	}
	underWay := alice.challenge(door, nil)
	b.step(keyplan.Rotate, "mac")
	b.step(keyplan.Activate, "mac")
	if b.version(keyring.MAC) != 2 {
		t.Fatalf("mac@%d is in use", b.version(keyring.MAC))
	}
	second, err := underWay.decision()
	if err != nil {
		t.Fatalf("a handle that was under way: %v", err)
	}
	if first.Pairwise != second.Pairwise {
		t.Error("the pairwise id has changed")
	}
	if _, err := b.tryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "mac@1"); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired under records: %v", err)
	}
	b.runUntil("records sealed anew", func() bool { return b.underNothing(1) })
	if _, err := b.tryStep(keyplan.Step{Verb: keyplan.Retire}, "mac@1"); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired while handles are under way: %v", err)
	}
	b.clock.advance(25 * time.Hour)
	b.step(keyplan.Retire, "mac@1")
	b.restart() // forgets what was checked
	third, err := alice.challenge(door, nil).decision()
	if err != nil || third.Pairwise != first.Pairwise {
		t.Errorf("after mac@1 was retired: %v, pairwise id %v, want %v", err, third.Pairwise, first.Pairwise)
	}
}

func (b *bench) client(name string) store.Client {
	b.Helper()
	c, err := b.ClientNamed(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// decision approves a challenge and gives the decision, whoever signed it.
func (s *session) decision() (receipt.Decision, error) {
	a, err := s.send(s.m3(protocol.Approve))
	if err != nil {
		return receipt.Decision{}, err
	}
	return s.verify(a.res.Decision, nil)
}

// TestForgedRecordStays: what is nobody's is not made anybody's by a rotation.
func TestForgedRecordStays(t *testing.T) {
	b := newBench(t)
	b.enrol("alice")
	bob := b.enrol("bob")
	b.tamper(1, `UPDATE client SET roles = '["approver"]' WHERE name = 'bob'`)
	b.step(keyplan.Rotate, "mac")
	b.step(keyplan.Activate, "mac")
	b.runUntil("records sealed anew", func() bool {
		_, under, err := b.store.Under(t.Context(), 1)
		return err == nil && under == 0
	})
	if _, err := bob.challenge(door, nil).decision(); err == nil || b.client("bob").Status != 0 {
		t.Errorf("the forged record was sealed anew: %v", err)
	}
}

// breaking fails ChangeKeys, stored or not.
type breaking struct {
	store.Store
	stored bool
}

func (f breaking) ChangeKeys(ctx context.Context, c store.KeyChange, rec audit.Record) error {
	if f.stored {
		if err := f.Store.ChangeKeys(ctx, c, rec); err != nil {
			return err
		}
	}
	return store.ErrUnavailable
}

// TestInterruptedStep: a step that fails at the store, stored or not, is repeated and
// comes to the same end: one key on the token, one row, one record.
func TestInterruptedStep(t *testing.T) {
	for _, stored := range []bool{false, true} {
		b := newBench(t)
		whole := b.store
		records := b.tally().Records
		for _, step := range []keyplan.Step{{Verb: keyplan.Rotate}, {Verb: keyplan.Activate, Version: 2}} {
			b.store = breaking{whole, stored}
			b.restart()
			ref := keyring.MAC
			if step.Version != 0 {
				ref = "mac@2"
			}
			if _, err := b.tryStep(step, ref); !errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("%s: %v", step.Verb, err)
			}
			b.store = whole
			b.restart()
			b.step(step.Verb, ref)
		}
		keys, err := b.token.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, k := range keys {
			if strings.HasPrefix(k.Label, "mac@") {
				count++
			}
		}
		if count != 2 || b.version(keyring.MAC) != 2 || b.tally().Records != records+2 {
			t.Errorf("stored %v: %d keys of mac, mac@%d in use, %d records more", stored, count, b.version(keyring.MAC), b.tally().Records-records)
		}
	}
}

// TestSchedule: what is overdue is said, and done where the appliance may.
func TestSchedule(t *testing.T) {
	b := newBench(t)
	schedule := keyplan.Schedule{Periods: map[string]time.Duration{keyring.KEM: 40 * 24 * time.Hour, keyring.MAC: 20 * 24 * time.Hour}}
	with := func(auto bool) {
		schedule.Auto = auto
		var err error
		b.Appliance, err = appliance.New(t.Context(), appliance.Config{
			Store: b.store, Keys: b.keys, Logger: hclog.NewNullLogger(), Now: b.clock.Now, Schedule: schedule,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	with(false)
	if err := b.KeysReady(t.Context()); err != nil {
		t.Errorf("at once: %v", err)
	}
	b.clock.advance(50 * 24 * time.Hour)
	err := b.KeysReady(t.Context())
	if !errors.Is(err, appliance.ErrKeysDue) || !strings.Contains(err.Error(), "kem@1 is overdue") || !strings.Contains(err.Error(), "mac@1 is overdue") {
		t.Errorf("overdue: %v", err)
	}
	if strings.Contains(err.Error(), "decision") {
		t.Errorf("decision is not due: %v", err)
	}
	with(true)
	b.runUntil("rotated by itself", func() bool { return b.version(keyring.KEM) == 2 && b.version(keyring.MAC) == 2 })
	if err := b.KeysReady(t.Context()); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
}

// TestNoneInUse: without a key that requests need the appliance is not ready.
func TestNoneInUse(t *testing.T) {
	b := newBench(t)
	if err := b.KeysInUse(t.Context()); err != nil {
		t.Errorf("at once: %v", err)
	}
	b.clock.advance(5 * 365 * 24 * time.Hour)
	err := b.KeysInUse(t.Context())
	if !errors.Is(err, appliance.ErrNoneInUse) || !strings.Contains(err.Error(), "decision") || strings.Contains(err.Error(), "mac") {
		t.Errorf("after five years: %v", err)
	}
	if err := b.KeysReady(t.Context()); !strings.Contains(err.Error(), "decision: none is in use") || strings.Contains(err.Error(), "0001") {
		t.Errorf("what is due: %v", err)
	}
	for _, name := range []string{"kem", "decision", "ca", "client-ca", "enrol"} {
		b.step(keyplan.Rotate, name)
		b.step(keyplan.Activate, name)
	}
	if err := b.KeysInUse(t.Context()); err != nil {
		t.Errorf("after new versions: %v", err)
	}
}

// TestWrapRotation: verifiers are wrapped anew in the background, and only then can the
// version before be retired; the passwords still work.
func TestWrapRotation(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	b.enrol("bob") // without a password
	before := b.client("alice")
	b.step(keyplan.Rotate, "wrap")
	b.step(keyplan.Activate, "wrap")
	if _, err := b.tryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "wrap@1"); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired under a verifier: %v", err)
	}
	b.runUntil("verifiers wrapped anew", func() bool { return b.client("alice").Version == before.Version+1 })
	if after := b.client("alice"); string(after.Verifier) == string(before.Verifier) {
		t.Error("the verifier is as it was")
	}
	b.step(keyplan.Retire, "wrap@1")
	b.restart()
	s := alice.challenge(payment, eur(5000))
	expect(t, s.must(s.with(0, nil)), protocol.ResultApproved, 0)
	if left := b.Renewal().Left; left != 0 {
		t.Errorf("%d records are left", left)
	}
}

// TestRecordsKeepTheirKeys: no version of mac or wrap is given up while anything that is
// stored is under it, whichever way it goes and whatever else was suspended before.
func TestRecordsKeepTheirKeys(t *testing.T) {
	b := newBoard(t, twoOfThree)
	b.enrolFull("alice")
	c := b.waits(invitation("lift"))
	for _, name := range []string{"mac", "wrap"} {
		b.step(keyplan.Rotate, name)
		b.step(keyplan.Activate, name)
		for _, s := range []keyplan.Step{{Verb: keyplan.Suspend}, {Verb: keyplan.Retire, Early: true}, {Verb: keyplan.Retire, Compromised: true}} {
			_, err := b.tryStep(s, name+"@1")
			if !errors.Is(err, keyplan.ErrEarly) || !strings.Contains(err.Error(), "records are still under "+name+"@1") {
				t.Errorf("%s %s@1 under records: %v", s.Verb, name, err)
			}
		}
	}
	before := b.client("alice").Version
	b.runUntil("records sealed anew", func() bool { return b.underNothing(1) && b.client("alice").Version > before })
	b.step(keyplan.Suspend, "wrap@1")
	if c = b.signed(c, b.ann.sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Errorf("a request that was under way is %s", c.State)
	}
	b.step(keyplan.Suspend, "mac@1")
	b.step(keyplan.Resume, "mac@1")
}

// TestLeftUnderSuspended: a record that was put back under a version which is suspended is
// left, and is brought to the one in use when that version comes back.
func TestLeftUnderSuspended(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	db, err := sql.Open("sqlite", b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var verifier, seal []byte
	if err := db.QueryRow(`SELECT verifier, seal FROM client`).Scan(&verifier, &seal); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mac", "wrap"} {
		b.step(keyplan.Rotate, name)
		b.step(keyplan.Activate, name)
	}
	b.runUntil("records made anew", func() bool { return b.underNothing(1) && b.client("alice").Version == 2 })
	b.step(keyplan.Suspend, "mac@1")
	b.step(keyplan.Suspend, "wrap@1")
	b.tamper(1, `UPDATE client SET verifier = ?, version = 1, seal = ?`, verifier, seal)
	b.restart()
	if c := b.client("alice"); c.Status != 0 {
		t.Errorf("a record under a suspended version of mac is %s", c.Status)
	}
	b.runUntil("a look", func() bool { r := b.Renewal(); return !r.Running && r.Total > 0 })
	b.step(keyplan.Resume, "mac@1")
	b.step(keyplan.Resume, "wrap@1")
	b.runUntil("records made anew", func() bool { return b.underNothing(1) && b.client("alice").Version == 2 && b.Renewal().Left == 0 })
	s := alice.challenge(payment, eur(5000))
	expect(t, s.must(s.with(0, nil)), protocol.ResultApproved, 0)
}

// TestAttestKeys: what a comparison finds is a warning until the next one finds nothing.
func TestAttestKeys(t *testing.T) {
	b := newBench(t)
	good := func() bool {
		t.Helper()
		found, err := b.AttestKeys(t.Context())
		if err != nil || len(found) == 0 {
			t.Fatalf("%d findings, %v", len(found), err)
		}
		return b.KeysAttested(t.Context()) == nil
	}
	if !good() {
		t.Fatal(b.KeysAttested(t.Context()))
	}
	stranger, err := b.token.Generate(t.Context(), hsm.KeySpec{Label: "stranger", Usage: hsm.MACKey})
	if err != nil {
		t.Fatal(err)
	}
	b.runUntil("a warning", func() bool { return b.KeysAttested(t.Context()) != nil })
	if err := b.KeysAttested(t.Context()); !errors.Is(err, appliance.ErrStrangeKeys) || !strings.Contains(err.Error(), "stranger") {
		t.Error(err)
	}
	if err := b.token.Destroy(t.Context(), stranger.ID); err != nil {
		t.Fatal(err)
	}
	if !good() {
		t.Error(b.KeysAttested(t.Context()))
	}
}
