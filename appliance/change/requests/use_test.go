package requests_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/policy"
)

var errBroken = errors.New("the connection broke")

// used counts the uses of an approval of a copy, the first of which fail.
func used(b *appliancetest.Board, fails int) (n int, err error) {
	err = b.Requests.Use(b.Context(), change.Draft{Kind: policy.StoreBackup, Parameters: change.Parameters{}}, func(context.Context, change.ID) error {
		if n++; fails > 0 {
			return errBroken
		}
		return nil
	})
	return n, err
}

// waits asks for a copy and requires that it waits for one more.
func waits(b *appliancetest.Board) requests.Change {
	b.Helper()
	n, err := used(b, 0)
	var w *requests.Waiting
	if !errors.As(err, &w) || n != 0 {
		b.Fatalf("used %d times: %v", n, err)
	}
	return w.Change
}

// approved is an approval of a copy.
func approved(b *appliancetest.Board) requests.Change {
	b.Helper()
	c := waits(b)
	if c = b.Signed(c, b.Ann.Sign(b.T, c.Hash)); !c.Granted || c.State != store.ChangeTaken {
		b.Fatalf("%s, granted %v", c.State, c.Granted)
	}
	return c
}

func state(b *appliancetest.Board, c requests.Change) store.ChangeState {
	b.Helper()
	c, err := b.Requests.Get(b.Context(), c.Hash.ID())
	if err != nil {
		b.Fatal(err)
	}
	return c.State
}

const twoForCopies = "[quorum]\n\"store.backup\" = 2\n"

// TestUsedOnce: an approval serves one use. A use that fails, and a restart, leave it.
func TestUsedOnce(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForCopies)
	c := approved(b)
	for range 2 {
		if n, err := used(b, 1); !errors.Is(err, errBroken) || n != 1 {
			t.Errorf("used %d times: %v", n, err)
		}
		if got := state(b, c); got != store.ChangeTaken {
			t.Errorf("after a failure it is %s", got)
		}
		b.Restart()
		b.Requests.Resume(t.Context())
	}
	if open, interrupted, err := b.Requests.Count(t.Context()); err != nil || open+interrupted != 0 {
		t.Errorf("%d are open, %d interrupted: %v", open, interrupted, err)
	}
	if n, err := used(b, 0); err != nil || n != 1 {
		t.Errorf("used %d times: %v", n, err)
	}
	if got := state(b, c); got != store.ChangeExecuted {
		t.Errorf("after its use it is %s", got)
	}
	if next := waits(b); next.Hash == c.Hash {
		t.Error("the spent approval waits again")
	}
}

// TestUsedByOne: of two callers at the same time only one has the approval.
func TestUsedByOne(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForCopies)
	c := approved(b)
	err := b.Requests.Use(t.Context(), change.Draft{Kind: policy.StoreBackup, Parameters: change.Parameters{}}, func(context.Context, change.ID) error {
		waits(b)
		if _, err := b.Requests.Withdraw(t.Context(), c.Hash.ID()); !errors.Is(err, requests.ErrOver) {
			t.Errorf("withdrawn in use: %v", err)
		}
		b.Clock.Advance(2 * time.Hour)
		b.Requests.Resume(t.Context()) // does not end what is in use
		return nil
	})
	if got := state(b, c); err != nil || got != store.ChangeExecuted {
		t.Errorf("%s, %v", got, err)
	}
}

// TestApprovalEnds: an approval is over after an hour, after a change of the policy, once a signer is
// suspended, and when it is withdrawn.
func TestApprovalEnds(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(*appliancetest.Board, requests.Change)
		want store.ChangeState
	}{
		"late": {func(b *appliancetest.Board, _ requests.Change) { b.Clock.Advance(time.Hour) }, store.ChangeExpired},
		"late, by the clock": {func(b *appliancetest.Board, _ requests.Change) {
			b.Clock.Advance(time.Hour)
			b.Requests.Resume(b.Context())
		}, store.ChangeExpired},
		"another policy": {func(b *appliancetest.Board, _ requests.Change) {
			b.Executes(rules.Draft(appliancetest.QuorumPolicy(twoForCopies + "\"key.backup\" = 2\n")))
		}, store.ChangeFailed},
		"signer suspended": {func(b *appliancetest.Board, _ requests.Change) {
			if _, err := b.Requests.SuspendAdmin(b.Context(), "ann"); err != nil {
				b.Fatal(err)
			}
		}, store.ChangeFailed},
		"withdrawn": {func(b *appliancetest.Board, c requests.Change) {
			if _, err := b.Requests.Withdraw(b.Context(), c.Hash.ID()); err != nil {
				b.Fatal(err)
			}
		}, store.ChangeWithdrawn},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.NewBoard(t, twoForCopies)
			c := approved(b)
			end.do(b, c)
			waits(b)
			if got := state(b, c); got != end.want {
				t.Errorf("it is %s, want %s", got, end.want)
			}
		})
	}
}

// TestOlderApproval: an approval that is stale is ended, and an older one that holds again is used.
func TestOlderApproval(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForCopies)
	older := approved(b)
	b.Executes(rules.Draft(appliancetest.QuorumPolicy(twoForCopies + "\"key.backup\" = 2\n")))
	ask, err := b.Requests.Ask(t.Context(), change.Draft{Kind: policy.StoreBackup, Parameters: change.Parameters{}})
	if err != nil {
		t.Fatal(err)
	}
	newer := b.Signed(ask, b.Ann.Sign(t, ask.Hash))
	if got := state(b, newer); got != store.ChangeTaken || newer.Hash == older.Hash {
		t.Fatalf("the newer one is %s", got)
	}
	b.Executes(rules.Draft(appliancetest.QuorumPolicy(twoForCopies)))
	if n, err := used(b, 0); n != 1 || err != nil {
		t.Errorf("used %d times: %v", n, err)
	}
	if a, c := state(b, older), state(b, newer); a != store.ChangeExecuted || c != store.ChangeFailed {
		t.Errorf("the older one is %s, the newer one %s", a, c)
	}
}

// TestUnattended: with store.backup = 0 a copy needs no vote, even if the socket has none.
func TestUnattended(t *testing.T) {
	for line, want := range map[string]int{"": 0, "\"store.backup\" = 0\n": 1} {
		b := appliancetest.NewBoard(t, "[quorum]\nlocal = false\n"+line)
		if n, err := used(b, 0); n != want || (err == nil) != (want == 1) {
			t.Errorf("%q: used %d times: %v", line, n, err)
		}
	}
}

// TestInForceStaysInSight: a request that waits, and one that was interrupted, are found under many
// that ended since.
func TestInForceStaysInSight(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	ask := appliancetest.Invitation("door")
	waiting := b.Waits(ask)
	taken := b.Taken(appliancetest.Invitation("other"))
	const ended = 1100 // more than are ever shown
	for i := range ended {
		appliancetest.EndedChange(b.Bench, i)
	}
	if again := b.Waits(ask); again.Hash != waiting.Hash {
		t.Error("the same request is there twice")
	}
	if open, interrupted, err := b.Requests.Count(t.Context()); err != nil || open != 1 || interrupted != 1 {
		t.Errorf("%d are open, %d interrupted: %v", open, interrupted, err)
	}
	all, err := b.Requests.List(t.Context())
	if err != nil || len(all) != 1002 || all[1001].Hash != waiting.Hash && all[1000].Hash != waiting.Hash {
		t.Errorf("%d are shown: %v", len(all), err)
	}
	if c := b.Resumed(taken.Hash.ID()); c.State != store.ChangeExecuted {
		t.Errorf("the interrupted one is %s: %s", c.State, c.Reason)
	}
	b.Clock.Advance(change.DefaultLife)
	b.Requests.Expire(t.Context())
	if got := state(b, waiting); got != store.ChangeExpired {
		t.Errorf("the open one is %s", got)
	}
}
