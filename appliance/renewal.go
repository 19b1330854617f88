package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
)

// Renewal is how far the client records have come to the mac and wrap keys in use.
type Renewal struct {
	Total   int    // client records
	Left    int    // of them not looked at yet, or under an earlier key
	Running bool   // the background is at it
	Problem string // why some are left; "" if none is, or it runs
}

// renewals brings client records to the mac and wrap keys in use, in the background. It
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
			a.log.Warn("client records stay as they are", "left", a.Renewal().Left, "error", err)
		default:
			a.log.Error("client records could not all be brought to the keys in use", "error", err)
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

// errUnfit: a record fits no version of mac that is accepted. It is nobody's, or of a
// version that was suspended.
var errUnfit = errors.New("under no mac key that is accepted")

// stays tells of a record that no second try brings to the keys in use.
func stays(err error) bool { return errors.Is(err, errUnfit) || errors.Is(err, hsm.ErrUnsupported) }

// renewAll does one round. Its error wraps [errUnfit] or [hsm.ErrUnsupported] if that is
// all that is wrong.
func (a *Appliance) renewAll(ctx context.Context) error {
	all, err := a.store.ListClients(ctx)
	if err != nil {
		return err
	}
	if a.keys.OneOfEach() {
		a.renewals.set(func(r *Renewal) { *r = Renewal{Total: len(all)} })
		return nil
	}
	a.renewals.set(func(r *Renewal) { *r = Renewal{Total: len(all), Left: len(all), Running: true} })
	var problems []error
	var stuck error
	for _, c := range all {
		switch err := a.renewClient(ctx, c.ID); {
		case err == nil:
			a.renewals.set(func(r *Renewal) { r.Left-- })
		case stays(err):
			stuck = err
		default:
			problems = append(problems, err)
		}
		if len(problems) == problemsKept || ctx.Err() != nil {
			break
		}
	}
	if err := a.renewAdmins(ctx); err != nil {
		problems = append(problems, err)
	}
	if err = errors.Join(problems...); err == nil {
		err = stuck
	}
	a.renewals.set(func(r *Renewal) {
		if r.Running = false; err != nil {
			r.Problem = err.Error()
		}
	})
	return err
}

// renewClient brings one record to the keys in use. A record that is nobody's stays as
// it is: to MAC it anew would make it somebody's.
func (a *Appliance) renewClient(ctx context.Context, id [8]byte) error {
	var err error
	for range casTries {
		var c store.Client
		if c, err = a.store.Client(ctx, id); err != nil {
			return err
		}
		var stale bool
		if c, stale, err = a.renewed(ctx, c); errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("record of client %s: %w", id, errUnfit)
		}
		if !stale {
			return err
		}
		stuck := err // of the verifier, where the MAC at least is made anew
		c.Version++
		if c, err = a.authenticate(ctx, c); err != nil {
			return err
		}
		fields := map[string]any{"event": "renewed", "version": c.Version, "mac": c.MAC}
		if err = a.store.UpdateClient(ctx, c, a.record(store.KindClients, c.Name, fields)); !errors.Is(err, store.ErrConflict) {
			return errors.Join(err, stuck)
		}
	}
	return err
}

// renewed is a record with its verifier under the wrap key in use; stale tells that its
// verifier or its MAC was not under the keys in use. A record that is nobody's is
// [store.ErrNotFound].
func (a *Appliance) renewed(ctx context.Context, c store.Client) (_ store.Client, stale bool, err error) {
	under, err := a.macOf(ctx, c)
	if err != nil {
		return c, false, err
	}
	in, err := a.keys.Current(keyring.MAC, a.now())
	if err != nil {
		return c, false, err
	}
	stale = under.Version != in.Version
	if c.Verifier == nil {
		return c, stale, nil
	}
	wrapped, err := a.keys.Rewrap(ctx, c.Verifier, a.now())
	if wrapped != nil {
		c.Verifier, stale = wrapped, true
	}
	if err != nil {
		err = fmt.Errorf("verifier of client %s: %w", c.ID, err)
	}
	return c, stale && (err == nil || errors.Is(err, hsm.ErrUnsupported)), err
}
