package keylife_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/policy"
	"countersign/protocol"
)

// erasable is a token that destroys keys, and that can be unavailable for that.
type erasable struct {
	*memory.Token
	away bool
	gone map[hsm.KeyID]int
}

func (e *erasable) Destroy(_ context.Context, id hsm.KeyID) error {
	if e.away {
		return hsm.ErrUnavailable
	}
	e.gone[id]++
	return nil
}

func (e *erasable) Keys(ctx context.Context) ([]hsm.Key, error) {
	all, err := e.Token.Keys(ctx)
	return slices.DeleteFunc(all, func(k hsm.Key) bool { return e.gone[k.ID] > 0 }), err
}

// TestDestroy: the second administrator's signature destroys a key once, even if the token was
// unavailable meanwhile.
func TestDestroy(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	token := &erasable{Token: b.Token, gone: map[hsm.KeyID]int{}}
	keys, err := keyuse.Load(t.Context(), token, b.Store, keyuse.Pins{Root: b.Keyring.Root()})
	if err != nil {
		t.Fatal(err)
	}
	b.Keyring = keys
	b.Restart()
	for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate, keyplan.Retire} {
		if _, err := b.Keys.Take(t.Context(), keyplan.Step{Verb: verb, Name: "decision", Early: verb == keyplan.Retire}); err != nil {
			t.Fatal(err)
		}
	}
	destroy := keyplan.Step{Verb: keyplan.Destroy, Name: "decision", Version: 1}
	_, err = b.Keys.Take(t.Context(), destroy)
	var waiting *requests.Waiting
	if !errors.As(err, &waiting) || !errors.Is(err, requests.ErrQuorum) || waiting.Ruling.MissingAdministrators() != 1 {
		t.Fatalf("one of two: %v", err)
	}
	if len(token.gone) != 0 {
		t.Fatal("the key is gone before the quorum was there")
	}
	token.away = true
	if _, err := b.Requests.Sign(t.Context(), waiting.Hash.ID(), b.Cat.Sign(t, waiting.Hash)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("token away: %v", err)
	}
	token.away = false
	if c := b.Resumed(waiting.Hash.ID()); c.State != store.ChangeExecuted {
		t.Fatalf("token back: %s, %s", c.State, c.Reason)
	}
	for _, v := range b.Keys.List() {
		if v.Name == "decision" && v.Version == 1 && (v.State != keyring.Destroyed || v.OnToken || token.gone[v.ID] != 1) {
			t.Errorf("decision@1 is %s, on the token %t, destroyed %d times", v.State, v.OnToken, token.gone[v.ID])
		}
	}
	if views, err := b.Keys.Take(t.Context(), destroy); err != nil || views[0].State != keyring.Destroyed {
		t.Errorf("again: %v, %v", views, err)
	}
}

// TestAdminsOutliveMAC: administrators and open requests survive a rotation of mac.
func TestAdminsOutliveMAC(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	c := b.Waits(appliancetest.Invitation("door"))
	for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
		if _, err := b.Keys.Take(t.Context(), keyplan.Step{Verb: verb, Name: keyring.MAC}); err != nil {
			t.Fatal(err)
		}
	}
	retire := keyplan.Step{Verb: keyplan.Retire, Name: keyring.MAC, Version: 1, Early: true}
	if _, err := b.Keys.Take(t.Context(), retire); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired while administrators are under it: %v", err)
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Errorf("request is %s, signed by %v", c.State, c.Signed)
	}
	all, err := b.Quorum.Admins(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%d administrators: %v", len(all), err)
	}
}

// TestMACRotation: handles in transit and pairwise ids survive a rotation of mac. Records are
// resealed, and only then can the old version be retired.
func TestMACRotation(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolPhone("alice")
	first, err := alice.Challenge(appliancetest.Door, nil).Decision()
	if err != nil {
		t.Fatal(err)
	}
	underWay := alice.Challenge(appliancetest.Door, nil)
	b.Step(keyplan.Rotate, "mac")
	b.Step(keyplan.Activate, "mac")
	if b.Version(keyring.MAC) != 2 {
		t.Fatalf("mac@%d is in use", b.Version(keyring.MAC))
	}
	second, err := underWay.Decision()
	if err != nil {
		t.Fatalf("a handle that was under way: %v", err)
	}
	if first.Pairwise != second.Pairwise {
		t.Error("the pairwise id has changed")
	}
	if _, err := b.TryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "mac@1"); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired under records: %v", err)
	}
	b.RunUntil("records sealed anew", func() bool { return b.UnderNothing(1) })
	if _, err := b.TryStep(keyplan.Step{Verb: keyplan.Retire}, "mac@1"); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired while handles are under way: %v", err)
	}
	b.Clock.Advance(25 * time.Hour)
	b.Step(keyplan.Retire, "mac@1")
	b.Restart() // forgets verified records
	third, err := alice.Challenge(appliancetest.Door, nil).Decision()
	if err != nil || third.Pairwise != first.Pairwise {
		t.Errorf("after mac@1 was retired: %v, pairwise id %v, want %v", err, third.Pairwise, first.Pairwise)
	}
}

// TestForgedRecordStays: a rotation does not reseal a forged record.
func TestForgedRecordStays(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	bob := b.EnrolPhone("bob")
	b.Tamper(1, `UPDATE client SET roles = '["approver"]' WHERE name = 'bob'`)
	b.Step(keyplan.Rotate, "mac")
	b.Step(keyplan.Activate, "mac")
	b.RunUntil("records sealed anew", func() bool {
		_, under, err := b.Store.Under(t.Context(), 1)
		return err == nil && under == 0
	})
	if _, err := bob.Challenge(appliancetest.Door, nil).Decision(); err == nil || b.Client("bob").Status != 0 {
		t.Errorf("the forged record was sealed anew: %v", err)
	}
}

// breaking fails ChangeKeys, after or without storing the change.
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

// TestInterruptedStep: repeating a step that failed at the store, stored or not, leaves one key
// on the token, one row and one record. So does the request that was interrupted, which ends.
func TestInterruptedStep(t *testing.T) {
	for _, stored := range []bool{false, true} {
		b := appliancetest.New(t)
		whole := b.Store
		for _, step := range []keyplan.Step{{Verb: keyplan.Rotate}, {Verb: keyplan.Activate, Version: 2}} {
			b.Store = breaking{whole, stored}
			b.Restart()
			ref := keyring.MAC
			if step.Version != 0 {
				ref = "mac@2"
			}
			if _, err := b.TryStep(step, ref); !errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("%s: %v", step.Verb, err)
			}
			b.Store = whole
			b.Restart()
			b.Step(step.Verb, ref)
			b.Requests.Resume(t.Context())
		}
		if open, interrupted, err := b.Requests.Count(t.Context()); err != nil || open+interrupted != 0 {
			t.Errorf("stored %v: %d requests are open, %d are interrupted: %v", stored, open, interrupted, err)
		}
		keys, err := b.Token.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, k := range keys {
			if strings.HasPrefix(k.Label, "mac@") {
				count++
			}
		}
		records, err := b.Store.Records(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		records = slices.DeleteFunc(records, func(r audit.Record) bool { return r.Kind != audit.KindKeys })
		if count != 2 || b.Version(keyring.MAC) != 2 || len(records) != 2 {
			t.Errorf("stored %v: %d keys of mac, mac@%d in use, %d records", stored, count, b.Version(keyring.MAC), len(records))
		}
	}
}

// TestSchedule: an overdue key is reported, and rotated if the schedule is automatic.
func TestSchedule(t *testing.T) {
	b := appliancetest.New(t)
	schedule := keyplan.Schedule{Periods: map[string]time.Duration{keyring.KEM: 40 * 24 * time.Hour, keyring.MAC: 20 * 24 * time.Hour}}
	with := func(auto bool) {
		schedule.Auto = auto
		b.Restart(func(c *appliance.Config) { c.Schedule = schedule })
	}
	with(false)
	if err := b.Keys.CheckDue(t.Context()); err != nil {
		t.Errorf("at once: %v", err)
	}
	b.Clock.Advance(50 * 24 * time.Hour)
	err := b.Keys.CheckDue(t.Context())
	if !errors.Is(err, keylife.ErrDue) || !strings.Contains(err.Error(), "kem@1 is overdue") || !strings.Contains(err.Error(), "mac@1 is overdue") {
		t.Errorf("overdue: %v", err)
	}
	if strings.Contains(err.Error(), "decision") {
		t.Errorf("decision is not due: %v", err)
	}
	with(true)
	b.RunUntil("rotated by itself", func() bool { return b.Version(keyring.KEM) == 2 && b.Version(keyring.MAC) == 2 })
	if err := b.Keys.CheckDue(t.Context()); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
}

// TestServiceNoneInUse: an appliance is not ready without a key that requests need.
func TestServiceNoneInUse(t *testing.T) {
	b := appliancetest.New(t)
	if err := b.Keys.CheckInUse(t.Context()); err != nil {
		t.Errorf("at once: %v", err)
	}
	b.Clock.Advance(5 * 365 * 24 * time.Hour)
	err := b.Keys.CheckInUse(t.Context())
	if !errors.Is(err, keylife.ErrNoneInUse) || !strings.Contains(err.Error(), "decision") || strings.Contains(err.Error(), "mac") {
		t.Errorf("after five years: %v", err)
	}
	if err := b.Keys.CheckDue(t.Context()); !strings.Contains(err.Error(), "decision: none is in use") || strings.Contains(err.Error(), "0001") {
		t.Errorf("what is due: %v", err)
	}
	for _, name := range []string{"kem", "decision", "ca", "client-ca", "enrol"} {
		b.Step(keyplan.Rotate, name)
		b.Step(keyplan.Activate, name)
	}
	if err := b.Keys.CheckInUse(t.Context()); err != nil {
		t.Errorf("after new versions: %v", err)
	}
}

// TestWrapRotation: verifiers are rewrapped in the background, and only then can the old version
// be retired. The passwords still work.
func TestWrapRotation(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	b.EnrolPhone("bob") // without a password
	before := b.Client("alice")
	b.Step(keyplan.Rotate, "wrap")
	b.Step(keyplan.Activate, "wrap")
	if _, err := b.TryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "wrap@1"); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired under a verifier: %v", err)
	}
	b.RunUntil("verifiers wrapped anew", func() bool { return b.Client("alice").Version == before.Version+1 })
	if after := b.Client("alice"); string(after.Verifier) == string(before.Verifier) {
		t.Error("the verifier is as it was")
	}
	b.Step(keyplan.Retire, "wrap@1")
	b.Restart()
	s := alice.Challenge(appliancetest.Payment, appliancetest.EUR(5000))
	appliancetest.Expect(t, s.Must(s.With(0, nil)), protocol.ResultApproved, 0)
	if left := b.Keys.Renewal().Left; left != 0 {
		t.Errorf("%d records are left", left)
	}
}

// TestRecordsKeepTheirKeys: a version of mac or wrap cannot be given up by any step while a
// stored record is under it.
func TestRecordsKeepTheirKeys(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	b.EnrolFull("alice")
	c := b.Waits(appliancetest.Invitation("lift"))
	for _, name := range []string{"mac", "wrap"} {
		b.Step(keyplan.Rotate, name)
		b.Step(keyplan.Activate, name)
		for _, s := range []keyplan.Step{{Verb: keyplan.Suspend}, {Verb: keyplan.Retire, Early: true}, {Verb: keyplan.Retire, Compromised: true}} {
			_, err := b.TryStep(s, name+"@1")
			if !errors.Is(err, keyplan.ErrEarly) || !strings.Contains(err.Error(), "records are still under "+name+"@1") {
				t.Errorf("%s %s@1 under records: %v", s.Verb, name, err)
			}
		}
	}
	before := b.Client("alice").Version
	b.RunUntil("records sealed anew", func() bool { return b.UnderNothing(1) && b.Client("alice").Version > before })
	b.Step(keyplan.Suspend, "wrap@1")
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Errorf("a request that was under way is %s", c.State)
	}
	b.Step(keyplan.Suspend, "mac@1")
	b.Step(keyplan.Resume, "mac@1")
}

// TestLeftUnderSuspended: a record under a suspended version stays, and is brought to the version
// in use once the suspension ends.
func TestLeftUnderSuspended(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	db, err := sql.Open("sqlite", b.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var verifier, seal []byte
	if err := db.QueryRow(`SELECT verifier, seal FROM client`).Scan(&verifier, &seal); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mac", "wrap"} {
		b.Step(keyplan.Rotate, name)
		b.Step(keyplan.Activate, name)
	}
	b.RunUntil("records made anew", func() bool { return b.UnderNothing(1) && b.Client("alice").Version == 2 })
	b.Step(keyplan.Suspend, "mac@1")
	b.Step(keyplan.Suspend, "wrap@1")
	b.Tamper(1, `UPDATE client SET verifier = ?, version = 1, seal = ?`, verifier, seal)
	b.Restart()
	if c := b.Client("alice"); c.Status != 0 {
		t.Errorf("a record under a suspended version of mac is %s", c.Status)
	}
	b.RunUntil("a look", func() bool { r := b.Keys.Renewal(); return !r.Running && r.Total > 0 })
	b.Step(keyplan.Resume, "mac@1")
	b.Step(keyplan.Resume, "wrap@1")
	b.RunUntil("records made anew", func() bool { return b.UnderNothing(1) && b.Client("alice").Version == 2 && b.Keys.Renewal().Left == 0 })
	s := alice.Challenge(appliancetest.Payment, appliancetest.EUR(5000))
	appliancetest.Expect(t, s.Must(s.With(0, nil)), protocol.ResultApproved, 0)
}

// TestAttestKeys: a finding is a warning until a comparison finds nothing.
func TestAttestKeys(t *testing.T) {
	b := appliancetest.New(t)
	good := func() bool {
		t.Helper()
		found, err := b.Keys.Attest(t.Context())
		if err != nil || len(found) == 0 {
			t.Fatalf("%d findings, %v", len(found), err)
		}
		return b.Keys.CheckAttested(t.Context()) == nil
	}
	if !good() {
		t.Fatal(b.Keys.CheckAttested(t.Context()))
	}
	stranger, err := b.Token.Generate(t.Context(), hsm.KeySpec{Label: "stranger", Usage: hsm.MACKey})
	if err != nil {
		t.Fatal(err)
	}
	b.RunUntil("a warning", func() bool { return b.Keys.CheckAttested(t.Context()) != nil })
	if err := b.Keys.CheckAttested(t.Context()); !errors.Is(err, keylife.ErrStrange) || !strings.Contains(err.Error(), "stranger") {
		t.Error(err)
	}
	if err := b.Token.Destroy(t.Context(), stranger.ID); err != nil {
		t.Fatal(err)
	}
	if !good() {
		t.Error(b.Keys.CheckAttested(t.Context()))
	}
}

// stuck is an anchor on a full disk.
type stuck struct{ err error }

func (stuck) Floor() store.Mark           { return store.Mark{} }
func (s *stuck) Advance(store.Mark) error { return s.err }

// fillsUp is a store whose anchor's disk is full from the next step of a key on.
type fillsUp struct {
	store.Store
	disk *stuck
}

func (f fillsUp) ChangeKeys(ctx context.Context, c store.KeyChange, rec audit.Record) error {
	f.disk.err = errors.New("no space left on device")
	return f.Store.ChangeKeys(ctx, c, rec)
}

// TestStoredButUnavailable: a step that was stored while the anchor could not follow is
// answered as unavailable, and the keys in use follow it all the same.
func TestStoredButUnavailable(t *testing.T) {
	b := appliancetest.New(t)
	b.Step(keyplan.Rotate, "decision")
	b.Step(keyplan.Activate, "decision")
	disk := &stuck{}
	if err := b.Store.Unseal(t.Context(), b.Seals, disk); err != nil {
		t.Fatal(err)
	}
	b.Store = fillsUp{b.Store, disk}
	b.Restart()
	if _, err := b.TryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "decision@1"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("retired: %v", err)
	}
	k, _ := b.Keyring.Ring().Find(keyring.Decision, 1)
	if k.RetiredAt.IsZero() {
		t.Error("decision@1 is retired in the store and still accepted")
	}
}

// TestStepOfAnotherRow: a request for a step names the revision of the row that its administrators saw. With
// another revision, or for a version that the step would not change, it is refused.
func TestStepOfAnotherRow(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"key.activate\" = 2\n")
	b.Step(keyplan.Rotate, keyring.Decision)
	key, _ := b.Keyring.Ring().Find(keyring.Decision, 2)
	for name, c := range map[string]struct {
		version, revision uint64
		want              error
	}{
		"as it is":          {2, key.Revision, requests.ErrQuorum},
		"an older row":      {2, key.Revision - 1, keyplan.ErrStep},
		"a later row":       {2, key.Revision + 1, keyplan.ErrStep},
		"another version":   {1, key.Revision, keyplan.ErrStep},
		"no version at all": {9, key.Revision, keyplan.ErrKeyName},
	} {
		ask, err := b.Requests.Ask(t.Context(), change.Draft{Kind: policy.KeyActivate, Parameters: change.Parameters{
			"name": keyring.Decision, "version": c.version, "revision": c.revision,
		}})
		if err == nil {
			_, err = ask.Done()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
