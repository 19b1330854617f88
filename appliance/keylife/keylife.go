// Package keylife takes the steps of a key's life. Its functions carry out steps on the token:
// ceremony, generation, copies, rewrapping, self-tests, attestation. Service takes steps by an
// administrator's request, by quorum and by schedule, and brings records to the keys in use.
package keylife

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/change/requests"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
)

// Service keeps the keys of an appliance. It is safe for concurrent use.
type Service struct {
	store    store.Store
	keys     *keyuse.Keys
	seals    *store.Seals
	requests *requests.Service
	token    string
	schedule keyplan.Schedule
	log      hclog.Logger
	now      func() time.Time
	renewals renewals
	strange  strangeKeys
	metric   prometheus.Gauge // number of strange keys

	steps sync.Mutex // held while a step is taken; there is one at a time

	// Used by Tick alone.
	scheduleProblem string    // logged last
	attested        time.Time // when the token was last compared with the registry
}

// Config holds what a Service needs.
type Config struct {
	Store    store.Store
	Keys     *keyuse.Keys
	Requests *requests.Service
	Token    string           // label of the token, for the rows of keys that are made on it
	Schedule keyplan.Schedule // when keys are due for rotation
	Logger   hclog.Logger
	Metrics  prometheus.Registerer // nil: not registered anywhere
	Now      func() time.Time
}

// New returns a service and registers the effects of every step that grants something.
func New(c Config) *Service {
	k := &Service{
		store: c.Store, keys: c.Keys, seals: c.Keys.Seals(), requests: c.Requests, token: c.Token, schedule: c.Schedule,
		log: c.Logger, now: c.Now, renewals: renewals{asked: make(chan struct{}, 1)},
		metric: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "countersign_strange_keys", Help: "Keys on the token that were unknown to the registry, or not as it has them, at the last comparison.",
		}),
	}
	for _, kind := range kindOf {
		c.Requests.Register(kind, k.stepEffect(kind))
	}
	c.Requests.Register(policy.RootRotate, requests.Effect{Base: k.rootBase, Do: k.rotateRoot})
	if c.Metrics != nil {
		c.Metrics.MustRegister(k.metric, newKeyMetrics(k))
	}
	return k
}

// Tick takes the steps that are due by schedule and compares the keys with the token once a
// day. It is called every minute, by one goroutine.
func (k *Service) Tick(ctx context.Context) {
	k.keepSchedule(ctx)
	k.attestDaily(ctx)
}

// Pause holds back every step of a key until resume is called.
func (k *Service) Pause() (resume func()) {
	k.steps.Lock()
	return k.steps.Unlock
}

// List returns all key versions in their present state.
func (k *Service) List() []keyplan.View { return keyplan.Views(k.keys.Ring(), k.now()) }

// Plan returns the keys as a step would leave them, and changes nothing. It returns the errors of
// [keyplan.New].
func (k *Service) Plan(ctx context.Context, s keyplan.Step) ([]keyplan.View, error) {
	ring := k.keys.Ring()
	plan, err := k.planOn(ctx, ring, s)
	if err != nil {
		return nil, err
	}
	return plan.Preview(ring), nil
}

// Take is [Service.TakeWithin] with the default time for countersigning.
func (k *Service) Take(ctx context.Context, s keyplan.Step) ([]keyplan.View, error) {
	return k.TakeWithin(ctx, s, 0)
}

// TakeWithin takes a step at once, unless more administrators have to countersign it: then the error is a
// [*requests.Waiting], and they can countersign until life is over. A suspension never waits. Other errors
// come from [keyplan.New], [requests.Service.Ask], token and store.
func (k *Service) TakeWithin(ctx context.Context, s keyplan.Step, life time.Duration) ([]keyplan.View, error) {
	d, needs, err := k.draft(ctx, s)
	switch {
	case err != nil:
		return nil, err
	case needs == noVote:
		return k.take(ctx, s, always)
	case needs == nothing:
		return k.take(ctx, s, onlyIdle)
	}
	d.Life = life
	c, err := k.requests.Ask(ctx, d)
	if err != nil {
		return nil, err
	}
	result, err := c.Done()
	views, _ := result.([]keyplan.View)
	return views, err
}

// take makes the keys that a step needs on the token, stores rows, settings and audit record in
// one transaction, and only then uses any of it. An interrupted step is completed by repeating
// it: a key that was made and not stored is adopted, a stored step is not taken twice, and a key
// that was given up and not removed is removed. may refuses the plan of the moment in which the step is
// taken, because the keys may have changed since the administrators were asked.
func (k *Service) take(ctx context.Context, s keyplan.Step, may func(keyplan.Plan) error) ([]keyplan.View, error) {
	k.steps.Lock()
	defer k.steps.Unlock()
	// An earlier step may have been stored although the store could not report it.
	if err := k.keys.Reload(ctx, k.store); err != nil {
		return nil, fmt.Errorf("%s %s: %w", s.Verb, s.Name, err)
	}
	plan, err := k.planOn(ctx, k.keys.Ring(), s)
	if err == nil {
		err = may(plan)
	}
	if err != nil {
		return nil, err
	}
	made, err := Carry(ctx, k.keys, plan, k.token)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", s.Verb, s.Name, err)
	}
	if s.Name == keyring.MAC {
		made.MAC = plan.SealedUnder(k.keys.Ring())
	}
	if len(made.Add)+len(made.Update) > 0 {
		if err := k.store.ChangeKeys(ctx, made, keyRecord(ctx, s, made)); err != nil {
			err = errors.Join(err, k.keys.Reload(ctx, k.store)) // it may be stored although the anchor could not follow
			return nil, fmt.Errorf("%s %s: %w", s.Verb, s.Name, err)
		}
	}
	// Also if nothing was stored: an earlier run may have been interrupted here.
	if err := errors.Join(Erase(ctx, k.keys, plan), k.keys.Reload(ctx, k.store)); err != nil {
		return nil, fmt.Errorf("%s %s is stored but not complete; repeat it: %w", s.Verb, s.Name, err)
	}
	k.renewals.wake()
	return plan.Views(k.keys.Ring(), k.now()), nil
}

// always lets a step be taken as it is planned.
func always(keyplan.Plan) error { return nil }

// onlyIdle refuses a step that changes a row: when the administrators would have been asked, it changed none.
func onlyIdle(p keyplan.Plan) error {
	if first, changes := firstEdit(p); changes {
		return fmt.Errorf("%s was changed meanwhile: ask again: %w", keyring.Label(first.Name, first.Version), keyplan.ErrStep)
	}
	return nil
}

// planOn plans a step on one state of the registry, and adds what only the store knows: no stored record may
// depend on a version that is given up. A plan that is not made under steps is only good to ask with.
func (k *Service) planOn(ctx context.Context, ring *keyring.Ring, s keyplan.Step) (keyplan.Plan, error) {
	plan, err := keyplan.New(ring, s, k.now())
	if err != nil || s.Name != keyring.MAC && s.Name != keyring.Wrap {
		return plan, err
	}
	switch s.Verb {
	case keyplan.Suspend, keyplan.Retire, keyplan.Destroy:
		return plan, k.freed(ctx, ring, plan)
	}
	return plan, nil
}

// freed returns an error if records are still under a version that a plan gives up.
func (k *Service) freed(ctx context.Context, ring *keyring.Ring, plan keyplan.Plan) error {
	for _, e := range plan.Edits {
		key, there := ring.Find(e.Name, e.Version)
		if e.Kept || !there || !key.OnToken || !key.DestroyedAt.IsZero() {
			continue
		}
		total, under, err := k.under(ctx, key)
		if err == nil && under > 0 {
			err = fmt.Errorf("%d of %d records are still under %s: %w", under, total, keyring.Label(e.Name, e.Version), keyplan.ErrEarly)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keyRecord returns the audit record of a step: each row with its new dates.
func keyRecord(ctx context.Context, s keyplan.Step, c store.KeyChange) audit.Record {
	var rows []map[string]any
	for _, k := range append(append([]store.Key{}, c.Add...), c.Update...) {
		row := map[string]any{"key": keyring.Label(k.Name, k.Version), "id": k.ID[:], "revision": k.Revision, "origin": string(k.Origin)}
		for name, at := range map[string]time.Time{
			"not_before": k.NotBefore, "not_after": k.NotAfter, "activated": k.ActivatedAt, "retired": k.RetiredAt,
			"suspended": k.SuspendedAt, "compromised": k.CompromisedAt, "destroyed": k.DestroyedAt,
		} {
			if !at.IsZero() {
				row[name] = at.Unix()
			}
		}
		if k.Cert != nil {
			row["cert"] = k.Cert
		}
		rows = append(rows, row)
	}
	fields := map[string]any{"event": string(s.Verb), "rows": rows}
	if s.Early {
		fields["early"] = true
	}
	return audit.Act(ctx, audit.KindKeys, "key/"+s.Name, fields)
}

// under counts the records that are protected by the mac or wrap key, and those under this
// version: without it they cannot be verified or rewrapped.
func (k *Service) under(ctx context.Context, key keyring.Key) (total, under uint64, err error) {
	if key.Name == keyring.MAC {
		return k.store.Under(ctx, key.Version)
	}
	clients, err := k.store.ListClients(ctx)
	for _, c := range clients {
		if c.Verifier == nil {
			continue
		}
		total++
		is, err := IsUnder(ctx, k.keys, key, c.Verifier)
		if err != nil {
			return 0, 0, err
		}
		if is {
			under++
		}
	}
	return total, under, err
}
