package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/protocol"
)

// Renewal is how far the records have come to the mac and wrap keys in use.
type Renewal struct {
	Total   int    // seals of records in force, and verifiers
	Left    int    // of them not looked at yet, or under an earlier key
	Running bool   // the background is at it
	Problem string // why some are left; "" if none is, or it runs
}

// renewals brings records to the mac and wrap keys in use, in the background. It
// keeps no state of its own: which records are left is read off the records, so that it
// goes on after a crash wherever it was.
type renewals struct {
	asked chan struct{}

	mu    sync.Mutex
	state Renewal // guarded by mu
}

// wake asks for a round.
func (r *renewals) wake() {
	select {
	case r.asked <- struct{}{}:
	default: // one is asked for already
	}
}

func (r *renewals) set(change func(*Renewal)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.state)
}

// Renewal is the state of the background work.
func (a *Appliance) Renewal() Renewal {
	a.renewals.mu.Lock()
	defer a.renewals.mu.Unlock()
	return a.renewals.state
}

// renewalPause is between rounds that failed.
const renewalPause = time.Minute

// runRenewals works through the records at the start and whenever it is asked, until
// ctx ends.
func (a *Appliance) runRenewals(ctx context.Context) {
	for ctx.Err() == nil {
		var again <-chan time.Time
		switch err := a.renewAll(ctx); {
		case ctx.Err() != nil || err == nil:
		case stays(err): // which no second try helps
			a.log.Warn("some records stay under an earlier key", "left", a.Renewal().Left, "error", err)
		default:
			a.log.Error("not all records could be brought to the keys in use", "error", err)
			again = time.After(renewalPause)
		}
		select {
		case <-ctx.Done():
		case <-again:
		case <-a.renewals.asked:
		}
	}
}

// problemsKept ends a round in which nothing goes right.
const problemsKept = 10

// stays tells of a record that no second try brings to the keys in use.
func stays(err error) bool {
	return errors.Is(err, store.ErrForged) || errors.Is(err, hsm.ErrUnsupported)
}

// resealBatch is how many records one transaction brings to the mac key in use.
const resealBatch = 500

// renewAll does one round. Its error wraps [hsm.ErrUnsupported] if that is all that is
// wrong.
func (a *Appliance) renewAll(ctx context.Context) error {
	err := a.renewRound(ctx)
	a.renewals.set(func(r *Renewal) {
		switch r.Running = false; {
		case err != nil:
			r.Problem = err.Error()
		case r.Left > 0:
			r.Problem = fmt.Sprintf("%d records do not fit their seals", r.Left)
		}
	})
	return err
}

func (a *Appliance) renewRound(ctx context.Context) error {
	total, under, err := a.store.Under(ctx, a.seals.InForce())
	if err != nil {
		return err
	}
	clients, err := a.withVerifiers(ctx)
	if err != nil {
		return err
	}
	a.renewals.set(func(r *Renewal) {
		*r = Renewal{Total: int(total) + len(clients), Left: int(total-under) + len(clients), Running: true}
	})
	if !a.keys.Ring().OneOf(keyring.MAC) {
		err = a.resealAll(ctx)
	}
	if err == nil {
		err = a.rewrapAll(ctx, clients)
	}
	return err
}

// withVerifiers are the clients whose verifiers may be under another wrap key.
func (a *Appliance) withVerifiers(ctx context.Context) ([]store.Client, error) {
	if a.keys.Ring().OneOf(keyring.Wrap) {
		return nil, nil
	}
	all, err := a.store.ListClients(ctx)
	return slices.DeleteFunc(all, func(c store.Client) bool { return c.Verifier == nil }), err
}

// resealAll brings the seals of all records in force to the mac key in use, in batches
// with one audit record each. What does not fit its seal stays as it is.
func (a *Appliance) resealAll(ctx context.Context) error {
	version := a.seals.InForce()
	rec := func(n int) audit.Record {
		return audit.NewRecord(audit.KindKeys, "key/mac", map[string]any{"event": "resealed", "version": version, "records": n})
	}
	var at store.Cursor
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var n int
		var err error
		if at, n, done, err = a.store.Reseal(ctx, at, resealBatch, rec); err != nil {
			return fmt.Errorf("sealing records anew: %w", err)
		}
		a.renewals.set(func(r *Renewal) { r.Left = max(r.Left-n, 0) })
	}
	return nil
}

// rewrapAll brings verifiers to the wrap key in use.
func (a *Appliance) rewrapAll(ctx context.Context, clients []store.Client) error {
	var problems []error
	var stuck error
	for _, c := range clients {
		switch err := a.rewrap(ctx, c.ID); {
		case err == nil:
			a.renewals.set(func(r *Renewal) { r.Left = max(r.Left-1, 0) })
		case stays(err):
			stuck = err
		default:
			problems = append(problems, err)
		}
		if len(problems) == problemsKept || ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return stuck
}

// rewrap brings one verifier to the wrap key in use.
func (a *Appliance) rewrap(ctx context.Context, id protocol.ClientID) error {
	var err error
	for range casTries {
		var c store.Client
		if c, err = a.store.Client(ctx, id); err != nil {
			return err
		}
		wrapped, err := keylife.Rewrap(ctx, a.keys, c.Verifier, a.now())
		if err != nil {
			return fmt.Errorf("verifier of client %s: %w", c.ID, err)
		}
		if wrapped == nil {
			return nil
		}
		c.Verifier, c.Version = wrapped, c.Version+1
		fields := map[string]any{"event": "renewed", "version": c.Version}
		if err = a.store.UpdateClient(ctx, c, a.record(audit.KindClients, c.Name, fields)); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return err
}
