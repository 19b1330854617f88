package enrol_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
)

// importsNone is a token whose module imports no passwords.
type importsNone struct{ hsm.Token }

func (importsNone) Import(context.Context, hsm.Import) ([]byte, error) {
	return nil, fmt.Errorf("no import: %w", hsm.ErrUnsupported)
}

// TestPasswordUnsupported: an enrolment with a password that the token cannot import is refused with code 7,
// so that the phone does not repeat it, and the same code serves an enrolment without one.
func TestPasswordUnsupported(t *testing.T) {
	b := appliancetest.New(t)
	var err error
	if b.Keyring, err = keyuse.Load(t.Context(), importsNone{b.Token}, b.Store, keyuse.Pins{Root: b.Keyring.Root()}); err != nil {
		t.Fatal(err)
	}
	b.Restart()
	code := b.Code(store.KindClient, "alice")
	if _, err := b.Enrol.Client(t.Context(), b.FullPhone().Request(code)); !errors.Is(err, protocol.CodeLevel) {
		t.Errorf("with a password: %v, want code 7", err)
	}
	if _, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code)); err != nil {
		t.Errorf("without one: %v", err)
	}
}
