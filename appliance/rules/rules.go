// Package rules keeps the active policy and its earlier versions, and activates a new one.
package rules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/change"
	"countersign/appliance/change/quorum"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/internal/bounded"
	"countersign/policy"
	"countersign/protocol"
)

// Version is a parsed version of the policy that is or was active.
type Version struct {
	*policy.Policy
	Number   uint64
	document []byte
}

// WireHash returns the policy's hash as decisions carry it.
func (v *Version) WireHash() protocol.PolicyHash {
	sum := v.Hash()
	return protocol.PolicyHash(sum[:8])
}

// versionsKept bounds the cache of verified versions.
const versionsKept = 256

// Rules holds the active policy. Challenges are answered under the version that they were
// made under, so it keeps the versions that it has verified and does not read them again:
// the store may hold something else by then. Rules is safe for concurrent use.
type Rules struct {
	store  store.Store
	judge  *quorum.Judge
	log    hclog.Logger
	now    func() time.Time
	auto   bool
	active atomic.Pointer[Version]

	versions bounded.Map[uint64, *Version] // by number
}

// Config holds what Rules needs.
type Config struct {
	Store  store.Store
	Judge  *quorum.Judge
	Auto   bool // the appliance takes the steps of its keys by itself
	Logger hclog.Logger
	Now    func() time.Time
}

// ErrAuto means that the schedule of the keys would take steps that the policy wants countersigned.
var ErrAuto = errors.New("[keys] auto takes steps that the policy wants countersigned")

// New loads the active policy. Its error wraps [ErrAuto] if the policy does not allow the schedule of
// the keys.
func New(ctx context.Context, c Config) (*Rules, error) {
	r := &Rules{
		store: c.Store, judge: c.Judge, log: c.Logger, now: c.Now, auto: c.Auto,
		versions: bounded.Map[uint64, *Version]{Max: versionsKept},
	}
	err := r.load(ctx)
	if err == nil {
		err = r.besideSchedule(r.Active().Policy)
	}
	return r, err
}

// besideSchedule refuses quorums that the schedule of the keys evades: it has no vote.
func (r *Rules) besideSchedule(p *policy.Policy) error {
	against := p.AgainstSchedule()
	if !r.auto || len(against) == 0 {
		return nil
	}
	return fmt.Errorf("%w (%v)", ErrAuto, against)
}

// Active returns the active version.
func (r *Rules) Active() *Version { return r.active.Load() }

// load makes the store's newest policy the active one.
func (r *Rules) load(ctx context.Context) error {
	row, err := r.store.ActivePolicy(ctx)
	if err != nil {
		return fmt.Errorf("reading the active policy: %w", err)
	}
	v, err := r.trusted(ctx, row)
	if err != nil {
		return err
	}
	r.active.Store(v)
	return nil
}

// At returns a version by its number. Errors wrap [store.ErrNotFound], or
// [store.ErrForged] if administrators did not countersign it.
func (r *Rules) At(ctx context.Context, number uint64) (*Version, error) {
	if v := r.Active(); v != nil && v.Number == number {
		return v, nil
	}
	if v, ok := r.versions.Get(number); ok {
		return v, nil
	}
	row, err := r.store.PolicyAt(ctx, number)
	if err != nil {
		return nil, fmt.Errorf("policy %d: %w", number, err)
	}
	return r.trusted(ctx, row)
}

// trusted parses a row of the store after verifying the change request behind it.
func (r *Rules) trusted(ctx context.Context, row store.Policy) (*Version, error) {
	if v, ok := r.versions.Get(row.Version); ok && bytes.Equal(v.document, row.Document) {
		return v, nil
	}
	if row.Version == 0 {
		return nil, fmt.Errorf("policy 0: %w", store.ErrForged)
	}
	if err := r.judge.Verify(ctx, recordOf(row)); err != nil {
		return nil, err
	}
	parsed, err := policy.ParseStored(row.Document) // an earlier release checked it
	if err != nil {
		return nil, fmt.Errorf("policy version %d in the store: %w", row.Version, err)
	}
	v := &Version{Policy: parsed, Number: row.Version, document: row.Document}
	r.versions.Put(v.Number, v)
	return v, nil
}

// recordOf: the first policy, a migrated one and one that was restored from a backup have
// no change request behind them.
func recordOf(row store.Policy) quorum.Record {
	return quorum.Record{
		What: fmt.Sprintf("policy %d", row.Version), Change: row.Change, Kinds: []policy.Kind{policy.PolicyApply}, Free: true,
		Fits: func(p change.Parameters) bool { return bytes.Equal(p.Bytes("document"), row.Document) },
	}
}

// Warn logs quorums that cannot be met, quorums that fewer administrators can evade, and parts that an
// earlier release accepted and that are not in force.
func (r *Rules) Warn(ctx context.Context) {
	active := r.Active()
	for _, text := range active.Ignored() {
		r.log.Warn("a part of the policy is not in force", "policy", active.Number, "ignored", text)
	}
	all, err := r.judge.Quorums(ctx, active.Policy)
	if err != nil {
		r.log.Error("administrators could not be counted", "error", err)
		return
	}
	for _, q := range all {
		if q.Able < q.Required {
			r.log.Warn("policy requires more administrators than there are", "change", q.Kind.String(), "required", q.Required, "there", q.Able)
		}
	}
	for _, e := range active.Evasions() {
		r.log.Warn("policy has a quorum that fewer administrators can change", "change", e.Kind.String(), "required", e.Takes, "by", e.By.String(), "fewer", e.Fewer)
	}
}

// Draft drafts the change request that activates a document.
func Draft(document []byte) change.Draft {
	return change.Draft{Kind: policy.PolicyApply, Parameters: change.Parameters{"document": document}}
}

// Base checks the document of a [policy.PolicyApply] request. The request rests on nothing
// else than the policy, which is part of every base.
func (r *Rules) Base(ctx context.Context, p change.Parameters) (any, error) {
	parsed, err := policy.Parse(p.Bytes("document"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", parties.ErrInput, err)
	}
	if err := r.besideSchedule(parsed); err != nil {
		return nil, fmt.Errorf("%w: %w: first set auto = false in config.toml and restart, or leave these quorums at 1",
			parties.ErrInput, err)
	}
	return nil, r.judge.KeepsWay(ctx, parsed)
}

// Apply makes the document of a [policy.PolicyApply] request the active policy. It skips
// the write if the active policy already has the document's bytes.
func (r *Rules) Apply(ctx context.Context, id change.ID, p change.Parameters) (any, error) {
	active, err := r.store.ActivePolicy(ctx)
	if err != nil {
		return nil, err
	}
	if document := p.Bytes("document"); !bytes.Equal(active.Document, document) {
		if _, err := r.Base(ctx, p); err != nil { // an administrator may have been suspended since
			return nil, err
		}
		if err := r.write(ctx, store.Policy{Version: active.Version + 1, Document: document, Change: id}); err != nil {
			return nil, err
		}
	}
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	r.Warn(ctx)
	now, err := r.Policy(ctx)
	return now, err
}

func (r *Rules) write(ctx context.Context, next store.Policy) error {
	parsed, err := policy.Parse(next.Document)
	if err != nil {
		return err
	}
	sum := parsed.Hash()
	next.ActivatedAt = r.now()
	fields := map[string]any{"event": "activated", "version": next.Version, "hash": sum[:]}
	return r.store.AddPolicy(ctx, next, audit.Act(ctx, audit.KindPolicy, fmt.Sprintf("policy/%d", next.Version), fields))
}
