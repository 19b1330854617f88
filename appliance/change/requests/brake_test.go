package requests_test

import (
	"errors"
	"sync"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change/requests"
	"countersign/appliance/parties"
	"countersign/appliance/store"
)

// keysOnly is a [quorum] without the vote of the socket.
const keysOnly = appliancetest.TwoOfThree + "local = false\n"

func suspends(b *appliancetest.Board, names ...string) {
	b.Helper()
	for _, name := range names {
		if one, err := b.Requests.SuspendAdmin(b.Context(), name); err != nil || one.Status != store.Suspended {
			b.Fatalf("suspending %s: %s, %v", name, one.Status, err)
		}
	}
}

func resuming(b *appliancetest.Board, name string) requests.Change {
	b.Helper()
	draft, err := b.Requests.DraftResume(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	c, err := b.Requests.Ask(b.Context(), draft)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// TestBrake: a suspension works on everyone but the last who can countersign, however high the quorums are, and those
// who are left take it back.
func TestBrake(t *testing.T) {
	b := appliancetest.NewBoard(t, keysOnly)
	suspends(b, "cat", "bob")
	if _, err := b.Requests.SuspendAdmin(t.Context(), "ann"); !errors.Is(err, parties.ErrInput) {
		t.Errorf("suspending the last who can countersign: %v", err)
	}
	c := resuming(b, "bob")
	if c.State != store.ChangeOpen || c.Required != 1 {
		t.Fatalf("resuming bob with ann alone left: %s, takes %d", c.State, c.Required)
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Fatalf("signed by the last who can: %s", c.State)
	}
	c = resuming(b, "cat")
	if c.Required != 2 {
		t.Errorf("resuming cat with two left takes %d", c.Required)
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeOpen {
		t.Errorf("signed by one of two who are left: %s", c.State)
	}
	if c = b.Signed(c, b.Bob.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Errorf("signed by two: %s", c.State)
	}
}

// TestBrakeLeavesTheSocket: while the admin socket counts, every operator can be suspended. The socket then counts as
// the one who is left.
func TestBrakeLeavesTheSocket(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	suspends(b, "ann", "bob", "cat")
	if c := resuming(b, "cat"); c.State != store.ChangeExecuted || c.Required != 1 {
		t.Errorf("resumed by the socket: %s, takes %d", c.State, c.Required)
	}
	if c := resuming(b, "bob"); c.State != store.ChangeOpen || c.Required != 2 {
		t.Errorf("resumed by the socket beside cat: %s, takes %d", c.State, c.Required)
	}
}

// TestResumedWasNotLeft: an administrator who is being resumed is not among those who are left, so that a request
// which was interrupted takes as many signatures after its effect as before.
func TestResumedWasNotLeft(t *testing.T) {
	b := appliancetest.NewBoard(t, keysOnly)
	suspends(b, "cat", "bob")
	c := resuming(b, "cat")
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Fatal(c.State, c.Reason)
	}
	again, err := b.Requests.Preview(t.Context(), requests.DraftAdmin("dora", appliancetest.NewOperator(t, "dora").Public))
	if err != nil || again.Required != 2 {
		t.Errorf("adding takes %d: %v", again.Required, err)
	}
	draft, err := b.Requests.DraftResume(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	if c, err = b.Requests.Preview(t.Context(), draft); err != nil || c.Required != 1 {
		t.Errorf("resuming cat, who is active beside ann, takes %d: %v", c.Required, err)
	}
}

// TestBrakeAtOnce: of three administrators who are suspended concurrently one stays.
func TestBrakeAtOnce(t *testing.T) {
	for range 5 {
		b := appliancetest.NewBoard(t, keysOnly)
		var racing sync.WaitGroup
		for _, o := range []appliancetest.Operator{b.Ann, b.Bob, b.Cat} {
			racing.Go(func() {
				if _, err := b.Requests.SuspendAdmin(t.Context(), o.Name); err != nil && !errors.Is(err, parties.ErrInput) {
					t.Error(err)
				}
			})
		}
		racing.Wait()
		if n, err := b.Quorum.Able(t.Context(), b.Rules.Active().Policy, ""); err != nil || n != 1 {
			t.Fatalf("%d administrators are left: %v", n, err)
		}
	}
}

// TestRevocationCountsSuspended: a revocation has to leave enough administrators for another quorum. One who is
// suspended counts, because those who are left can resume them; one who is left has to be able to sign.
func TestRevocationCountsSuspended(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\nlocal = false\n\"policy.apply\" = 2\n\"admin.add\" = 2\n")
	revoke := func(name string) error {
		draft, err := b.Requests.DraftRevoke(t.Context(), name)
		if err == nil {
			_, err = b.Requests.Preview(t.Context(), draft)
		}
		return err
	}
	suspends(b, "cat", "bob")
	if err := revoke("bob"); err != nil {
		t.Errorf("revoking bob beside ann, and cat who is suspended: %v", err)
	}
	if err := revoke("ann"); !errors.Is(err, parties.ErrInput) {
		t.Errorf("revoking the last who can countersign: %v", err)
	}
	draft, err := b.Requests.DraftRevoke(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Requests.Ask(t.Context(), draft)
	if err == nil {
		c, err = b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash))
	}
	if err != nil || c.State != store.ChangeExecuted {
		t.Fatalf("%s: %v", c.State, err)
	}
	if err := revoke("cat"); !errors.Is(err, parties.ErrInput) {
		t.Errorf("revoking cat, which leaves one for a quorum of two: %v", err)
	}
}

// TestLeftWithoutRequest: a writer of the database who spoils the request behind an administrator takes a vote away,
// but does not lower what it takes to resume another.
func TestLeftWithoutRequest(t *testing.T) {
	b := appliancetest.NewBoard(t, keysOnly)
	suspends(b, "cat")
	bob, err := b.Quorum.AdminNamed(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	b.Tamper(1, `UPDATE change SET seal = zeroblob(length(seal)) WHERE id = ?`, bob.Change[:])
	c := resuming(b, "cat")
	if n, err := b.Quorum.Able(t.Context(), b.Rules.Active().Policy, ""); err != nil || n != 1 {
		t.Fatalf("%d can countersign: %v", n, err)
	}
	if c.Required != 2 {
		t.Errorf("resuming cat takes %d", c.Required)
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeOpen {
		t.Errorf("signed by one: %s", c.State)
	}
}
