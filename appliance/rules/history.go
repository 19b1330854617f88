package rules

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/change/quorum"
	"countersign/appliance/parties"
	"countersign/appliance/store"
)

// Policy is a version of the policy as administrators see it: the document, its hash, and its quorums with the number
// of administrators who could countersign under it now.
type Policy struct {
	store.Policy
	Hash    [32]byte
	Quorums []quorum.Quorum
}

// Policy reads the active policy.
func (r *Rules) Policy(ctx context.Context) (Policy, error) {
	row, err := r.store.ActivePolicy(ctx)
	if err != nil {
		return Policy{}, err
	}
	return r.view(ctx, row)
}

// PolicyAt reads a version that is or was active. Errors wrap [store.ErrNotFound].
func (r *Rules) PolicyAt(ctx context.Context, version uint64) (Policy, error) {
	row, err := r.store.PolicyAt(ctx, version)
	if errors.Is(err, store.ErrNotFound) {
		err = parties.Missing(fmt.Sprintf("there is no version %d of the policy", version))
	}
	if err != nil {
		return Policy{}, err
	}
	return r.view(ctx, row)
}

// shown is how many versions History returns at most.
const shown = 100

// History returns the newest versions, the active one first.
func (r *Rules) History(ctx context.Context) ([]Policy, error) {
	newest, err := r.Policy(ctx)
	if err != nil {
		return nil, err
	}
	all := []Policy{newest}
	for version := newest.Version - 1; version > 0 && len(all) < shown; version-- {
		p, err := r.PolicyAt(ctx, version)
		if errors.Is(err, store.ErrNotFound) { // a restore begins with the version of its backup
			break
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func (r *Rules) view(ctx context.Context, row store.Policy) (Policy, error) {
	v, err := r.trusted(ctx, row)
	if err != nil {
		return Policy{}, err
	}
	p := Policy{Policy: row, Hash: v.Hash()}
	p.Quorums, err = r.judge.Quorums(ctx, v.Policy)
	return p, err
}
