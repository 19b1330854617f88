package parties_test

import (
	"errors"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/parties"
	"countersign/appliance/store"
)

// TestWords: an error of a name says what has no such name, or what was revoked and how it comes back.
func TestWords(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	if _, err := b.Parties.SetClientStatus(t.Context(), "alice", store.Revoked); err != nil {
		t.Fatal(err)
	}
	_, revoked := b.Parties.SetClientStatus(t.Context(), "alice", store.Active)
	_, unknown := b.Parties.DeviceNamed(t.Context(), "attic")
	for want, got := range map[string]error{
		`client "alice" was revoked permanently: invite it anew with --replace`: revoked,
		`no device is called "attic"`:                                           unknown,
	} {
		if got == nil || got.Error() != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
	if !errors.Is(revoked, parties.ErrFinal) || !errors.Is(unknown, store.ErrNotFound) {
		t.Errorf("%v, %v", revoked, unknown)
	}
}
