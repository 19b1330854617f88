// Package appliance composes the service from its parts: authorize answers phones, enrol
// enrols clients and devices, requests takes changes through their quorum, keylife keeps the
// keys, recovery makes backups. appliance/api and appliance/adminapi put them on listeners.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/authorize"
	"countersign/appliance/change/quorum"
	"countersign/appliance/change/requests"
	"countersign/appliance/enrol"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/parties"
	"countersign/appliance/recovery"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/internal/clock"
	"countersign/policy"
	"countersign/protocol"
)

// Config holds what an appliance is made of.
type Config struct {
	Store    store.Store
	Keys     *keyuse.Keys     // New takes over the alarm of its seals
	Token    string           // label of the token, for the rows of keys that are made on it
	Schedule keyplan.Schedule // when keys are due for rotation
	Logger   hclog.Logger
	Metrics  prometheus.Registerer // nil: not registered anywhere
	Attest   enrol.Attest          // nil: attestations are of format "unverified"
	// RefusalTime is the least time that a refused countersignature takes, so
	// that its length does not show the reason; 0: 50 ms.
	RefusalTime time.Duration
	// Now is the clock; nil: the system's. With the system's clock, everything that expires or waits
	// goes by a clock that is not set back while the process runs.
	Now func() time.Time
}

// Appliance holds the parts of the service. It is safe for concurrent use.
type Appliance struct {
	Authorize *authorize.Service
	Enrol     *enrol.Service
	Parties   *parties.Parties
	Quorum    *quorum.Judge
	Requests  *requests.Service
	Rules     *rules.Rules
	Keys      *keylife.Service
	Recovery  *recovery.Service

	store   store.Store
	keyring *keyuse.Keys
	seals   *store.Seals
	now     func() time.Time
	steady  *clock.Steady // nil if Config.Now is set
	alarm   *alarm
	heart   *heartbeat
}

// New loads the active policy and composes an appliance. It starts nothing; see
// [Appliance.Run].
func New(ctx context.Context, c Config) (*Appliance, error) {
	steady := c.Now
	var own *clock.Steady
	if c.Now == nil {
		own = clock.New()
		c.Now, steady = time.Now, own.Now
	}
	a := &Appliance{
		store: c.Store, keyring: c.Keys, seals: c.Keys.Seals(), now: c.Now, steady: own, alarm: newAlarm(c.Logger, c.Metrics), heart: newHeartbeat(c.Metrics),
		Parties: parties.New(c.Store), Quorum: quorum.New(c.Store, c.Keys.Seals(), c.Keys.Domain()),
	}
	a.seals.Alarm(a.alarm.raise)
	var err error
	if a.Rules, err = rules.New(ctx, rules.Config{Store: c.Store, Judge: a.Quorum, Auto: c.Schedule.Auto, Logger: c.Logger, Now: c.Now}); err != nil {
		return nil, err
	}
	a.Requests = requests.New(requests.Config{Store: c.Store, Judge: a.Quorum, Rules: a.Rules, Logger: c.Logger, Now: steady})
	a.Requests.Register(policy.PolicyApply, requests.Effect{Base: a.Rules.Base, Do: a.Rules.Apply})
	a.Authorize = authorize.New(authorize.Config{
		Store: c.Store, Keys: c.Keys, Parties: a.Parties, Rules: a.Rules, Logger: c.Logger, Metrics: c.Metrics,
		RefusalTime: c.RefusalTime, Now: steady,
	})
	a.Enrol = enrol.New(enrol.Config{
		Store: c.Store, Keys: c.Keys, Parties: a.Parties, Judge: a.Quorum, Rules: a.Rules, Requests: a.Requests,
		Attest: c.Attest, Logger: c.Logger, Now: steady,
	})
	a.Keys = keylife.New(keylife.Config{
		Store: c.Store, Keys: c.Keys, Requests: a.Requests, Token: c.Token, Schedule: c.Schedule,
		Logger: c.Logger, Metrics: c.Metrics, Now: c.Now,
	})
	a.Recovery = recovery.New(recovery.Config{Store: c.Store, Keyring: c.Keys, Keys: a.Keys, Requests: a.Requests, Now: c.Now})
	a.Rules.Warn(ctx)
	return a, nil
}

// Run does the background work until ctx ends: at the start and every minute it finishes
// interrupted changes and lets the keys' schedule take its steps; every minute it closes
// expired change requests and writes the counts of failures and refusals to the audit, which it does
// once more at the end. Meanwhile it brings records to the keys in use, and the heartbeat uses
// store and token.
func (a *Appliance) Run(ctx context.Context) {
	var beside sync.WaitGroup
	beside.Go(func() { a.Keys.Renew(ctx) })
	beside.Go(func() { a.beatUntil(ctx) })
	defer beside.Wait()
	a.Requests.Resume(ctx)
	a.Keys.Tick(ctx)
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			a.Authorize.FlushCounts(ctx)
			a.Requests.Resume(ctx)
			a.Requests.Expire(ctx)
			a.Keys.Tick(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			a.Authorize.FlushCounts(last)
			return
		}
	}
}

// Overview is a summary for administrators.
type Overview struct {
	Domain        string
	Root          protocol.PublicKey
	PolicyVersion uint64
	PolicyHash    protocol.PolicyHash
	Tally         store.Tally
	OpenCodes     int // activation codes that can still be used
}

// Overview summarizes keys, policy and store.
func (a *Appliance) Overview(ctx context.Context) (Overview, error) {
	tally, err := a.store.Tally(ctx)
	open, openErr := a.store.OpenInvitations(ctx, a.now())
	err = errors.Join(err, openErr)
	active := a.Rules.Active()
	return Overview{
		OpenCodes: len(open),
		Domain:    a.keyring.Domain(), Root: a.keyring.Root(), PolicyVersion: active.Number, PolicyHash: active.WireHash(), Tally: tally,
	}, err
}

// ErrForgedRecords means that records did not fit their seals since the start.
var ErrForgedRecords = errors.New("records did not fit their seals")

// RecordsFit returns [ErrForgedRecords] if any record that was read did not fit its seal.
func (a *Appliance) RecordsFit(context.Context) error {
	if n := a.seals.Forged(); n > 0 {
		return fmt.Errorf("%w, %d times since the start: countersignd doctor names them", ErrForgedRecords, n)
	}
	return nil
}

// alarm reports records that do not fit their seals: in the log once a minute for each
// record, in the metric each time.
type alarm struct {
	log    hclog.Logger
	forged prometheus.Counter

	mu     sync.Mutex
	logged map[string]time.Time // guarded by mu
}

const (
	alarmAgain = time.Minute
	alarmsKept = 1000 // a full memory is emptied
)

func newAlarm(log hclog.Logger, reg prometheus.Registerer) *alarm {
	a := &alarm{log: log, forged: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "countersign_forged_records_total", Help: "Records that did not fit their seals, each time one was read.",
	})}
	if reg != nil {
		reg.MustRegister(a.forged)
	}
	return a
}

func (a *alarm) raise(err error) {
	a.forged.Inc()
	if a.isNew(err.Error(), time.Now()) {
		a.log.Error("record was changed outside of the appliance", "error", err)
	}
}

func (a *alarm) isNew(text string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.logged[text]; ok && now.Sub(last) < alarmAgain && !now.Before(last) {
		return false
	}
	if a.logged == nil || len(a.logged) >= alarmsKept {
		a.logged = map[string]time.Time{}
	}
	a.logged[text] = now
	return true
}
