package sqlite

import (
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
	"countersign/protocol/message"
)

// TestAskedAfterItsVersion: a version of mac is given up, and a decision that was over before stays under it. A client that
// asks about it learns what it was and what the device reported.
func TestAskedAfterItsVersion(t *testing.T) {
	s, seals := unsealedNew(t)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	first := p.Spend(5) // long ago, by storetest.Epoch
	if out, err := s.Spend(t.Context(), first); err != nil || out.Result != protocol.ResultApproved {
		t.Fatalf("%+v, %v", out, err)
	}
	report := store.Report{
		Device: first.Decision.Device, Transaction: first.Decision.Transaction, Performed: true, At: storetest.Epoch,
	}
	if err := s.Report(t.Context(), report, storetest.Note("")); err != nil {
		t.Fatal(err)
	}
	rotated(t, s, seals)
	if _, _, err := resealAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	seals.GiveUp(1, true)
	ask := p.Spend(6)
	ask.Dry, ask.Asks = true, &first.Serial
	out, err := s.Spend(t.Context(), ask)
	if want := (message.AskedResult{Result: protocol.ResultApproved}); err != nil || out.Asked == nil || *out.Asked != want {
		t.Errorf("asked about it: %+v %+v, %v", out, out.Asked, err)
	}
	if performed, err := s.Performed(t.Context(), p.Client.ID, first.Serial); err != nil || performed == nil || !*performed {
		t.Errorf("performed: %v, %v", performed, err)
	}
}
