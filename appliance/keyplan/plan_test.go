package keyplan_test

import (
	"errors"
	"testing"
	"time"

	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// founded returns the ring after a ceremony at noon.
func founded() *keyring.Ring {
	var keys []keyring.Key
	for i, e := range keyplan.Ceremony(noon).Edits {
		e.ID = [20]byte{byte(i + 1)}
		if e.Certify {
			e.Cert = []byte{1}
		}
		keys = append(keys, keyring.Key{Key: e.Key, OnToken: true})
	}
	return (&keyring.Ring{}).With(keyring.Settings{RootCerts: [][]byte{{1}}}, keys...)
}

// TestCeremony: every needed key is in use, epochs follow each other without a gap for
// four periods, and a second root waits.
func TestCeremony(t *testing.T) {
	r := founded()
	for _, name := range keyring.Needed {
		if _, err := r.Current(name, noon); err != nil {
			t.Error(err)
		}
	}
	if versions := r.Versions(keyring.Root); len(versions) != 2 || r.State(versions[1], noon) != keyring.PreActivation {
		t.Errorf("roots %v", versions)
	}
	epochs := r.Versions(keyring.KEM)
	if len(epochs) != 4 {
		t.Fatalf("%d epochs of kem", len(epochs))
	}
	for i := range epochs[1:] {
		if !epochs[i].NotAfter.Equal(epochs[i+1].NotBefore) {
			t.Errorf("kem@%d ends %s and the next begins %s", i+1, epochs[i].NotAfter, epochs[i+1].NotBefore)
		}
	}
	if begin := epochs[0].NotBefore; !begin.Equal(noon.Add(-24 * time.Hour)) {
		t.Errorf("kem@1 begins %s", begin)
	}
}

// TestPure: a plan changes nothing, and its preview is the ring after it.
func TestPure(t *testing.T) {
	r := founded()
	plan, err := keyplan.New(r, keyplan.Step{Verb: keyplan.Rotate, Name: keyring.MAC}, noon)
	if err != nil || len(plan.Edits) != 1 || !plan.Edits[0].Generate || plan.Edits[0].Version != 2 {
		t.Fatalf("%+v, %v", plan, err)
	}
	if views := plan.Preview(r); len(views) != 1 || views[0].State != keyring.PreActivation || !views[0].OnToken {
		t.Errorf("preview %+v", views)
	}
	if len(r.Versions(keyring.MAC)) != 1 || len(plan.Views(r, noon)) != 0 {
		t.Error("the plan has changed the ring")
	}
	if plan.SealedUnder(r) != 1 {
		t.Error("a version that waits seals records")
	}
	if _, err := keyplan.New(r, keyplan.Step{Verb: keyplan.Suspend, Name: keyring.MAC, Version: 1}, noon); !errors.Is(err, keyplan.ErrStep) {
		t.Errorf("the only usable version is suspended: %v", err)
	}
}

// TestDue: a rotation is due a notice before the end of the period, and a prepared epoch
// that begins in time needs none.
func TestDue(t *testing.T) {
	s := keyplan.Schedule{Periods: map[string]time.Duration{keyring.MAC: 40 * 24 * time.Hour}, Notice: 5 * 24 * time.Hour}
	for days, want := range map[int]keyplan.Standing{0: keyplan.Later, 34: keyplan.Later, 36: keyplan.DueNow, 40: keyplan.Overdue} {
		now := noon.AddDate(0, 0, days)
		for _, d := range s.Due(founded(), now) {
			switch {
			case d.Name == keyring.MAC && (d.Standing != want || d.Version != 1):
				t.Errorf("after %d days mac is %s", days, d.Standing)
			case d.Name == keyring.KEM && (d.Standing != keyplan.Scheduled || d.Next != 2):
				t.Errorf("after %d days kem is %s, next %d", days, d.Standing, d.Next)
			case d.Name == keyring.Wrap && d.Standing != keyplan.NotScheduled:
				t.Errorf("wrap, without a period, is %s", d.Standing)
			}
		}
	}
}
