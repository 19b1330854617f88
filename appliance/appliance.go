// Package appliance is the service: it opens what phones send, decides by policy,
// commits, and answers. Its doors are Authorize (apply, countersign, outcome),
// Enrol and Administer; appliance/httpapi puts them on listeners. One request
// goes one way: open, evidence, decide, commit, sign, answer. Nothing is signed
// before it is durable, and nothing that was denied reaches the signer.
package appliance

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
)

// Config is what an appliance is made of.
type Config struct {
	Store    store.Store
	Keys     *keyuse.Keys     // it keeps the seals, whose alarm is the appliance's from then on
	Token    string           // label of the token, for the rows of the keys that are made on it
	Schedule keyplan.Schedule // when keys are to be rotated
	Logger   hclog.Logger
	Metrics  prometheus.Registerer // nil: not registered anywhere
	Attest   Attest                // nil: attestations are of format "unverified"
	// Effects are kinds of change that are made elsewhere, beside those of this package.
	Effects map[policy.Kind]Effect
	// RefusalTime is the least time that a refused countersignature takes, so
	// that its length does not tell why; 0: 50 ms.
	RefusalTime time.Duration
	Now         func() time.Time // nil: time.Now
}

// defaultRefusalTime is long beside what the work takes and its spread, and short
// beside a person.
const defaultRefusalTime = 50 * time.Millisecond

// Attest verifies the attestation of a UV key and names its format, which the
// policy accepts or not. An error is a format that it does not.
type Attest func(ctx context.Context, a Attestation) (format string, err error)

// Attestation is a UV key with the bytes that vouch for it.
type Attestation struct {
	Client    protocol.ClientID
	UVKey     protocol.PublicKey
	Statement []byte
}

// Appliance serves all callers; it is safe for concurrent use.
type Appliance struct {
	store    store.Store
	keys     *keyuse.Keys
	seals    *store.Seals
	log      hclog.Logger
	now      func() time.Time
	attest   Attest
	refusal  time.Duration
	policy   atomic.Pointer[activePolicy]
	policies policyCache
	behind   behindCache
	handles  handleKeys
	alarms   alarms
	pairs    pairwiseCache
	devices  deviceCache
	failures failures
	metrics  *metrics

	tokenLabel string
	keySteps   sync.Mutex // one step of a key's life at a time
	renewals   renewals
	schedule   keyplan.Schedule
	strange    strangeKeys

	effects  map[policy.Kind]Effect
	changing sync.Mutex // one change request at a time

	// Of Run alone.
	scheduleProblem string    // what was said last
	attested        time.Time // when the token was last compared with the registry
}

// New loads the active policy and makes an appliance. It starts nothing; see Run.
func New(ctx context.Context, c Config) (*Appliance, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.RefusalTime == 0 {
		c.RefusalTime = defaultRefusalTime
	}
	a := &Appliance{
		refusal: c.RefusalTime, store: c.Store, keys: c.Keys, seals: c.Keys.Seals(), log: c.Logger, now: c.Now, attest: c.Attest, metrics: newMetrics(c.Metrics),
		tokenLabel: c.Token, renewals: renewals{asked: make(chan struct{}, 1)}, schedule: c.Schedule,
	}
	a.seals.Alarm(a.alarm)
	a.effects = a.builtin()
	maps.Copy(a.effects, c.Effects)
	if err := a.loadPolicy(ctx); err != nil {
		return nil, err
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(newKeyMetrics(a))
	}
	a.warnOfQuorums(ctx)
	return a, nil
}

// Run writes the minute's failure counts to the audit, keeps the schedule of the keys,
// compares them with the token once a day and goes on with changes that were
// interrupted, until ctx ends, and the counts once more then; beside that it brings
// records to the keys in use.
func (a *Appliance) Run(ctx context.Context) {
	var beside sync.WaitGroup
	beside.Go(func() { a.runRenewals(ctx) })
	defer beside.Wait()
	a.resumeChanges(ctx)
	a.keepSchedule(ctx)
	a.attestDaily(ctx)
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			a.flushFailures(ctx)
			a.resumeChanges(ctx)
			a.expireChanges(ctx)
			a.keepSchedule(ctx)
			a.attestDaily(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			a.flushFailures(last)
			return
		}
	}
}

// codeFor is the one way from an error of the service to a code; ok is false for
// what is not in the table, which a caller learns nothing of.
func codeFor(err error) (code protocol.Code, ok bool) {
	if code, ok = protocol.CodeOf(err); ok {
		return code, true
	}
	for _, row := range policyCodes {
		if errors.Is(err, row.err) {
			return row.code, true
		}
	}
	return 0, false
}

var policyCodes = []struct {
	err  error
	code protocol.Code
}{
	{policy.ErrServiceUnknown, protocol.CodeService},
	{policy.ErrLevelUnavailable, protocol.CodeLevel},
	{policy.ErrAmountRequired, protocol.CodePolicy},
	{policy.ErrAmountNotAllowed, protocol.CodePolicy},
	{policy.ErrAmountTooLarge, protocol.CodePolicy},
	{policy.ErrCurrency, protocol.CodePolicy},
}
