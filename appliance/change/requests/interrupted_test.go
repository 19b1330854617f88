package requests_test

import (
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change/requests"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// TestInterrupted: an appliance killed before or after making a change finishes the request.
func TestInterrupted(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	before := b.Invitations()
	c := b.Taken(appliancetest.Invitation("door"))
	if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeExecuted || b.Invitations() != before+1 {
		t.Fatalf("killed before: %s, %d invitations more", c.State, b.Invitations()-before)
	}
	ask := appliancetest.Invitation("gate-2")
	c = b.Taken(ask)
	code := [32]byte(ask.Parameters.Bytes("code_sha256"))
	made := store.Invitation{Code: code, Kind: store.KindDevice, Name: "gate-2", Display: "x", Floor: 1, CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now().Add(time.Hour), Change: c.Hash.ID()}
	if err := b.Store.Invite(t.Context(), made, audit.NewRecord(audit.KindDevices, "device", nil)); err != nil {
		t.Fatal(err)
	}
	if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeExecuted || b.Invitations() != before+2 {
		t.Fatalf("killed after: %s, %d invitations more", c.State, b.Invitations()-before)
	}
	add := b.Taken(requests.DraftAdmin("dora", appliancetest.NewOperator(t, "dora").Public))
	if add = b.Resumed(add.Hash.ID()); add.State != store.ChangeExecuted {
		t.Errorf("adding an administrator: %s, %s", add.State, add.Reason)
	}
	rules := b.Taken(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n")))
	if rules = b.Resumed(rules.Hash.ID()); rules.State != store.ChangeExecuted {
		t.Errorf("applying a policy: %s, %s", rules.State, rules.Reason)
	}
}
