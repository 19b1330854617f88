package appliance

import (
	"bytes"
	"context"
	"fmt"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/policy"
)

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
	rules := a.policy.Load()
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
func (a *Appliance) applyPolicy(ctx context.Context, p change.Parameters) (any, error) {
	active, err := a.store.ActivePolicy(ctx)
	if err != nil {
		return nil, err
	}
	document := p.Bytes("document")
	if !bytes.Equal(active.Document, document) {
		parsed, err := policy.Parse(document)
		if err != nil {
			return nil, err
		}
		sum := parsed.Hash()
		next := store.Policy{Version: active.Version + 1, Document: document, ActivatedAt: a.now()}
		fields := map[string]any{"event": "activated", "version": next.Version, "hash": sum[:]}
		rec := store.NewRecord(store.KindPolicy, fmt.Sprintf("policy/%d", next.Version), fields)
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
