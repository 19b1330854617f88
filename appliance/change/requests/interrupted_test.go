package requests_test

import (
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
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

const twoForGates = "[quorum]\n\"device.invite\" = 2\n\"store.backup\" = 2\n"

// TestSignedThenKilled: an appliance killed after the last signature was stored, and before the request
// was taken, makes the change at its next start, once. It does not make what no longer has its quorum,
// what is over, and what has its quorum only since the policy or what it is based on changed.
func TestSignedThenKilled(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(*appliancetest.Board, requests.Change)
		want      store.ChangeState
		made      uint64
	}{
		"at once": {func(*appliancetest.Board, requests.Change) {}, store.ChangeExecuted, 1},
		"a signer was suspended": {func(b *appliancetest.Board, _ requests.Change) {
			if _, err := b.Requests.SuspendAdmin(b.Context(), "ann"); err != nil {
				b.Fatal(err)
			}
		}, store.ChangeOpen, 0},
		"a signer was suspended, and one is enough since": {func(b *appliancetest.Board, _ requests.Change) {
			if _, err := b.Requests.SuspendAdmin(b.Context(), "ann"); err != nil {
				b.Fatal(err)
			}
			b.Executes(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n")))
		}, store.ChangeFailed, 0},
		"the name was given": {func(b *appliancetest.Board, _ requests.Change) {
			b.Executes(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n")))
			b.EnrolDevice("door")
			b.Executes(rules.Draft(appliancetest.QuorumPolicy(twoForGates)))
		}, store.ChangeFailed, 1},
		"its time is over": {func(b *appliancetest.Board, c requests.Change) {
			b.Clock.Advance(time.Unix(int64(c.Expires), 0).Sub(b.Clock.Now()))
		}, store.ChangeExpired, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.NewBoard(t, twoForGates)
			before := b.Invitations()
			r := b.Untaken(appliancetest.Invitation("door"))
			c.meanwhile(b, r)
			for range 2 {
				if r = b.Resumed(r.Hash.ID()); r.State != c.want || b.Invitations() != before+c.made {
					t.Fatalf("%s, %s, %d invitations more", r.State, r.Reason, b.Invitations()-before)
				}
			}
		})
	}
}

// TestAskedThenKilled: the same where the word of the admin socket is enough, which the request has
// when it is stored.
func TestAskedThenKilled(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n")
	c, err := b.Requests.Preview(t.Context(), appliancetest.Invitation("door"))
	if err != nil {
		t.Fatal(err)
	}
	row := store.Change{
		ID: c.Hash.ID(), Document: c.Document, State: store.ChangeOpen, CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now().Add(time.Hour),
		Signatures: []store.ChangeSignature{{At: b.Clock.Now()}},
	}
	if err := b.Store.AddChange(t.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
		t.Fatal(err)
	}
	if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeExecuted {
		t.Errorf("%s, %s", c.State, c.Reason)
	}
}

// TestOneIsEnoughSince: a request with one signature of two is not made once the policy asks for one.
func TestOneIsEnoughSince(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForGates)
	c := b.Waits(appliancetest.Invitation("door"))
	if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeOpen {
		t.Fatalf("with one signature: %s", c.State)
	}
	before := b.Invitations()
	b.Executes(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n")))
	if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeFailed || b.Invitations() != before {
		t.Errorf("%s, %d invitations more", c.State, b.Invitations()-before)
	}
}

// TestSignedThenKilledGrants: a request of a kind that grants is granted, not executed.
func TestSignedThenKilledGrants(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForGates)
	d := change.Draft{Kind: policy.StoreBackup, Parameters: change.Parameters{}}
	for range 2 {
		if c := b.Resumed(b.Untaken(d).Hash.ID()); c.State != store.ChangeTaken || !c.Granted {
			t.Errorf("%s, granted: %v", c.State, c.Granted)
		}
	}
}
