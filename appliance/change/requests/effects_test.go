package requests_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
)

// anyKind is a kind whose effect the tests replace.
const anyKind = policy.KeyDestroy

// counting is an effect of another package. It counts its runs, and fails if it is told to.
type counting struct {
	mu   sync.Mutex
	done int   // guarded by mu
	err  error // guarded by mu
}

func (k *counting) effect() requests.Effect {
	return requests.Effect{
		Base: func(_ context.Context, p change.Parameters) (any, error) { return p.Text("name"), nil },
		Do: func(context.Context, change.ID, change.Parameters) (any, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.err == nil {
				k.done++
			}
			return k.done, k.err
		},
	}
}

// TestEffectElsewhere: a permanent failure closes the request, an unavailable token does not.
func TestEffectElsewhere(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"key.destroy\" = 2\n")
	if _, err := b.Requests.Ask(t.Context(), change.Draft{Kind: "key.create"}); !errors.Is(err, change.ErrDocument) {
		t.Fatalf("a kind that there is not: %v", err)
	}
	ask := change.Draft{Kind: anyKind, Parameters: change.Parameters{"name": "wrap"}}
	k := &counting{err: hsm.ErrInput}
	b.Requests.Register(anyKind, k.effect())
	c := b.Waits(ask)
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash)); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("failing for good: %v", err)
	}
	if c, err := b.Requests.Get(t.Context(), c.Hash.ID()); err != nil || c.State != store.ChangeFailed || c.Reason == "" {
		t.Errorf("%s, %q: %v", c.State, c.Reason, err)
	}
	k.err = hsm.ErrUnavailable
	c = b.Waits(ask)
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("token away: %v", err)
	}
	if c, err := b.Requests.Get(t.Context(), c.Hash.ID()); err != nil || c.State != store.ChangeTaken {
		t.Errorf("%s: %v", c.State, err)
	}
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Bob.Sign(t, c.Hash)); !errors.Is(err, requests.ErrOver) {
		t.Errorf("signed while taken: %v", err)
	}
	if _, err := b.Requests.Withdraw(t.Context(), c.Hash.ID()); !errors.Is(err, requests.ErrOver) {
		t.Errorf("withdrawn while taken: %v", err)
	}
}

// TestRacingSigners: three administrators sign concurrently, many times each. The change is made
// once.
func TestRacingSigners(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"key.destroy\" = 3\n")
	k := &counting{}
	b.Requests.Register(anyKind, k.effect())
	c, err := b.Requests.Ask(t.Context(), change.Draft{Kind: anyKind, Parameters: change.Parameters{"name": "wrap"}})
	if err != nil {
		t.Fatal(err)
	}
	var racing sync.WaitGroup
	for range 8 {
		for _, raw := range [][]byte{b.Ann.Sign(t, c.Hash), b.Bob.Sign(t, c.Hash), b.Cat.Sign(t, c.Hash), nil} {
			racing.Go(func() {
				_, err := b.Requests.Sign(t.Context(), c.Hash.ID(), raw)
				if err != nil && !errors.Is(err, requests.ErrOver) {
					t.Error(err)
				}
			})
		}
	}
	racing.Wait()
	c, err = b.Requests.Get(t.Context(), c.Hash.ID())
	if err != nil || c.State != store.ChangeExecuted || k.done != 1 || len(c.Signed) != 3 {
		t.Errorf("%s, done %d times, signed by %v: %v", c.State, k.done, c.Signed, err)
	}
}

// TestSuspendedWhileDecided: the vote of an administrator who is suspended while a request is decided does not
// count.
func TestSuspendedWhileDecided(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	k := &counting{}
	effect, base := k.effect(), 0
	effect.Base = func(ctx context.Context, _ change.Parameters) (any, error) {
		if base++; base == 3 { // asked, signed, and now decided
			_, err := b.Requests.SuspendAdmin(ctx, "ann")
			return nil, err
		}
		return nil, nil
	}
	b.Requests.Register(anyKind, effect)
	c := b.Waits(change.Draft{Kind: anyKind, Parameters: change.Parameters{"name": "wrap"}})
	c = b.Signed(c, b.Ann.Sign(t, c.Hash))
	if base != 3 || k.done != 0 || c.State != store.ChangeOpen || c.Ruling.MissingAdministrators() != 1 {
		t.Errorf("after %d bases %s, done %d times, signed by %v", base, c.State, k.done, c.Signed)
	}
	if c = b.Signed(c, b.Bob.Sign(t, c.Hash)); c.State != store.ChangeExecuted || k.done != 1 {
		t.Errorf("%s, done %d times, signed by %v", c.State, k.done, c.Signed)
	}
}
