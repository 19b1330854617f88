package keylife

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/protocol"
)

// Renewal is the progress of bringing records to the mac and wrap keys in use.
type Renewal struct {
	Total   int    // seals of records in force, and verifiers
	Left    int    // not visited yet, or under an earlier key
	Running bool   // the background work is running
	Problem string // why some are left; "" if none is, or while it runs
}

// renewals brings records to the mac and wrap keys in use, in the background. It stores no
// progress: the records show which of them are left, so that it continues after a crash.
type renewals struct {
	asked chan struct{}

	mu    sync.Mutex
	state Renewal // guarded by mu
}

// wake requests a round.
func (r *renewals) wake() {
	select {
	case r.asked <- struct{}{}:
	default: // a round is requested already
	}
}

func (r *renewals) set(change func(*Renewal)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.state)
}

// Renewal returns the progress of the background work.
func (k *Service) Renewal() Renewal {
	k.renewals.mu.Lock()
	defer k.renewals.mu.Unlock()
	return k.renewals.state
}

// renewalPause is the time between rounds after a failure.
const renewalPause = time.Minute

// Renew works through the records at the start and whenever a round is requested, until ctx ends.
func (k *Service) Renew(ctx context.Context) {
	for ctx.Err() == nil {
		var again <-chan time.Time
		switch err := k.renewAll(ctx); {
		case ctx.Err() != nil || err == nil:
		case stays(err): // trying again would not help
			k.log.Warn("some records stay under an earlier key", "left", k.Renewal().Left, "error", err)
		default:
			k.log.Error("not all records could be brought to the keys in use", "error", err)
			again = time.After(renewalPause)
		}
		select {
		case <-ctx.Done():
		case <-again:
		case <-k.renewals.asked:
		}
	}
}

// problemsKept ends a round in which nothing succeeds.
const problemsKept = 10

// stays reports whether a record cannot be brought to the keys in use by trying again.
func stays(err error) bool {
	return errors.Is(err, store.ErrForged) || errors.Is(err, hsm.ErrUnsupported)
}

// resealBatch is the number of records that one transaction reseals.
const resealBatch = 500

// renewAll does one round. Its error wraps [hsm.ErrUnsupported] if nothing else is wrong.
func (k *Service) renewAll(ctx context.Context) error {
	err := k.renewRound(ctx)
	k.renewals.set(func(r *Renewal) {
		switch r.Running = false; {
		case err != nil:
			r.Problem = err.Error()
		case r.Left > 0:
			r.Problem = fmt.Sprintf("%d records do not fit their seals", r.Left)
		}
	})
	return err
}

func (k *Service) renewRound(ctx context.Context) error {
	total, under, err := k.store.Under(ctx, k.seals.InForce())
	if err != nil {
		return err
	}
	clients, err := k.withVerifiers(ctx)
	if err != nil {
		return err
	}
	k.renewals.set(func(r *Renewal) {
		*r = Renewal{Total: int(total) + len(clients), Left: int(total-under) + len(clients), Running: true}
	})
	if !k.keys.Ring().OneOf(keyring.MAC) {
		err = k.resealAll(ctx)
	}
	if err == nil {
		err = k.rewrapAll(ctx, clients)
	}
	return err
}

// withVerifiers returns the clients whose verifiers may be under another wrap key.
func (k *Service) withVerifiers(ctx context.Context) ([]store.Client, error) {
	if k.keys.Ring().OneOf(keyring.Wrap) {
		return nil, nil
	}
	all, err := k.store.ListClients(ctx)
	return slices.DeleteFunc(all, func(c store.Client) bool { return c.Verifier == nil }), err
}

// resealAll reseals all records in force under the mac key in use, in batches with one audit
// record each. It leaves a record that does not fit its seal as it is.
func (k *Service) resealAll(ctx context.Context) error {
	version := k.seals.InForce()
	rec := func(n int) audit.Record {
		return audit.Act(ctx, audit.KindKeys, "key/mac", map[string]any{"event": "resealed", "version": version, "records": n})
	}
	var at store.Cursor
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var n int
		var err error
		if at, n, done, err = k.store.Reseal(ctx, at, resealBatch, rec); err != nil {
			return fmt.Errorf("resealing records: %w", err)
		}
		k.renewals.set(func(r *Renewal) { r.Left = max(r.Left-n, 0) })
	}
	return nil
}

// rewrapAll brings verifiers to the wrap key in use.
func (k *Service) rewrapAll(ctx context.Context, clients []store.Client) error {
	var problems []error
	var stuck error
	for _, c := range clients {
		switch err := k.rewrap(ctx, c.ID); {
		case err == nil:
			k.renewals.set(func(r *Renewal) { r.Left = max(r.Left-1, 0) })
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
func (k *Service) rewrap(ctx context.Context, id protocol.ClientID) error {
	return parties.Retry(func() error {
		c, err := k.store.Client(ctx, id)
		if err != nil {
			return err
		}
		wrapped, err := Rewrap(ctx, k.keys, c.Verifier, k.now())
		if err != nil {
			return fmt.Errorf("verifier of client %s: %w", c.ID, err)
		}
		if wrapped == nil {
			return nil
		}
		c.Verifier, c.Version = wrapped, c.Version+1
		fields := map[string]any{"event": "renewed", "version": c.Version, "id": c.ID[:]}
		return k.store.UpdateClient(ctx, c, parties.Record(ctx, audit.KindClients, c.Name, fields))
	})
}
