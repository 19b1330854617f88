package appliance

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// activePolicy is a version of the policy that was or is active, parsed.
type activePolicy struct {
	*policy.Policy
	version   uint64
	document  []byte
	activated time.Time
}

func (p *activePolicy) wireHash() protocol.PolicyHash {
	sum := p.Hash()
	return protocol.PolicyHash(sum[:8])
}

// policyCache keeps versions of the policy that were judged, since challenges are answered
// by the version that they were made under. What is here is not read again: the store may
// say something else by then.
type policyCache struct {
	mu       sync.Mutex
	versions map[uint64]*activePolicy // guarded by mu
}

// policiesKept bounds it; beyond it everything is read and judged anew.
const policiesKept = 256

func (c *policyCache) get(version uint64) *activePolicy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.versions[version]
}

func (c *policyCache) add(p *activePolicy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.versions == nil || len(c.versions) >= policiesKept {
		c.versions = map[uint64]*activePolicy{}
	}
	c.versions[p.version] = p
}

// loadPolicy makes the store's newest policy the active one.
func (a *Appliance) loadPolicy(ctx context.Context) error {
	row, err := a.store.ActivePolicy(ctx)
	if err != nil {
		return fmt.Errorf("reading the active policy: %w", err)
	}
	p, err := a.trustedPolicy(ctx, row)
	if err != nil {
		return err
	}
	a.policy.Store(p)
	return nil
}

// policyAt is a version of the policy. Errors wrap [store.ErrNotFound], or [ErrForged]
// where nobody countersigned it.
func (a *Appliance) policyAt(ctx context.Context, version uint64) (*activePolicy, error) {
	if p := a.policy.Load(); p != nil && p.version == version {
		return p, nil
	}
	if p := a.policies.get(version); p != nil {
		return p, nil
	}
	row, err := a.store.PolicyAt(ctx, version)
	if err != nil {
		return nil, fmt.Errorf("policy %d: %w", version, err)
	}
	return a.trustedPolicy(ctx, row)
}

// trustedPolicy is a row of the store once the request behind it was judged.
func (a *Appliance) trustedPolicy(ctx context.Context, row store.Policy) (*activePolicy, error) {
	if p := a.policies.get(row.Version); p != nil && bytes.Equal(p.document, row.Document) {
		return p, nil
	}
	if row.Version == 0 {
		return nil, fmt.Errorf("policy 0: %w", ErrForged)
	}
	if err := a.askedFor(ctx, behindPolicy(row)); err != nil {
		return nil, err
	}
	parsed, err := policy.Parse(row.Document)
	if err != nil {
		return nil, fmt.Errorf("policy version %d in the store: %w", row.Version, err)
	}
	p := &activePolicy{Policy: parsed, version: row.Version, document: row.Document, activated: row.ActivatedAt}
	a.policies.add(p)
	return p, nil
}

// Policy is the active policy: the document, and what its [quorum] comes to.
type Policy struct {
	store.Policy
	Hash    [32]byte
	Quorums []Quorum
}

// Quorum is how many administrators a kind of change requires, and how many there are.
type Quorum struct {
	Kind     policy.Kind
	Required int
	Able     int
}

// Policy reads the active policy.
func (a *Appliance) Policy(ctx context.Context) (Policy, error) {
	row, err := a.store.ActivePolicy(ctx)
	if err != nil {
		return Policy{}, err
	}
	rules, err := a.trustedPolicy(ctx, row)
	if err != nil {
		return Policy{}, err
	}
	p := Policy{Policy: row, Hash: rules.Hash()}
	p.Quorums, err = a.quorums(ctx, rules.Policy)
	return p, err
}

func (a *Appliance) quorums(ctx context.Context, rules *policy.Policy) ([]Quorum, error) {
	n, err := a.able(ctx, rules, "")
	var all []Quorum
	for _, k := range policy.Kinds() {
		all = append(all, Quorum{Kind: k, Required: rules.Quorum(k).Administrators, Able: n})
	}
	return all, err
}

// warnOfQuorums tells of quorums that cannot be met, and of those that fewer get round.
func (a *Appliance) warnOfQuorums(ctx context.Context) {
	all, err := a.quorums(ctx, a.policy.Load().Policy)
	if err != nil {
		a.log.Error("administrators could not be counted", "error", err)
		return
	}
	for _, q := range all {
		if q.Able < q.Required {
			a.log.Warn("policy requires more administrators than there are", "change", q.Kind.String(), "required", q.Required, "there", q.Able)
		}
	}
	for _, e := range a.policy.Load().Evasions() {
		a.log.Warn("policy has a quorum that fewer administrators can change", "change", e.Kind.String(), "required", e.Takes, "by", e.By.String(), "fewer", e.Fewer)
	}
}

// AskPolicy is the change that a new policy is.
func AskPolicy(document []byte) Ask {
	return Ask{Kind: policy.PolicyApply, Parameters: change.Parameters{"document": document}}
}

func (a *Appliance) policyBase(ctx context.Context, p change.Parameters) (any, error) {
	parsed, err := policy.Parse(p.Bytes("document"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	return nil, a.keepsWay(ctx, parsed, "")
}

// applyPolicy makes a document the active policy. It is found done by its bytes.
func (a *Appliance) applyPolicy(ctx context.Context, c Change) (any, error) {
	active, err := a.store.ActivePolicy(ctx)
	if err != nil {
		return nil, err
	}
	document := c.Parameters.Bytes("document")
	if !bytes.Equal(active.Document, document) {
		parsed, err := policy.Parse(document)
		if err != nil {
			return nil, err
		}
		sum := parsed.Hash()
		next := store.Policy{Version: active.Version + 1, Document: document, ActivatedAt: a.now(), Change: c.Hash.ID()}
		fields := map[string]any{"event": "activated", "version": next.Version, "hash": sum[:]}
		rec := audit.NewRecord(audit.KindPolicy, fmt.Sprintf("policy/%d", next.Version), fields)
		if err := a.store.AddPolicy(ctx, next, rec); err != nil {
			return nil, err
		}
	}
	if err := a.loadPolicy(ctx); err != nil {
		return nil, err
	}
	a.warnOfQuorums(ctx)
	now, err := a.Policy(ctx)
	return now, err
}
