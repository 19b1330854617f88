package keylife_test

import (
	"errors"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
)

// stuck is an anchor on a full disk.
type stuck struct{ err error }

func (stuck) Floor() store.Mark           { return store.Mark{} }
func (s *stuck) Advance(store.Mark) error { return s.err }

// TestStoredButUnavailable: a step that was stored while the anchor could not follow is
// answered as unavailable, and the ring in use has it all the same.
func TestStoredButUnavailable(t *testing.T) {
	b := appliancetest.New(t)
	b.Step(keyplan.Rotate, "decision")
	b.Step(keyplan.Activate, "decision")
	disk := &stuck{}
	if err := b.Store.Unseal(t.Context(), b.Seals, disk); err != nil {
		t.Fatal(err)
	}
	disk.err = errors.New("no space left on device")
	if _, err := b.TryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "decision@1"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("retired: %v", err)
	}
	k, _ := b.Keyring.Ring().Find(keyring.Decision, 1)
	if k.RetiredAt.IsZero() {
		t.Error("decision@1 is retired in the store and still accepted")
	}
}
