package appliance

import (
	"context"
	"fmt"

	"countersign/appliance/change"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/policy"
)

// askForKey is the change request of a step that takes a quorum: whatever destroys a
// key, and whatever becomes of the root. gated is false for the others, and where the
// step has nothing left to do.
func (a *Appliance) askForKey(ctx context.Context, s keyplan.Step) (ask Ask, gated bool, err error) {
	if s.Verb != keyplan.Destroy && s.Name != keyring.Root {
		return ask, false, nil
	}
	a.keySteps.Lock()
	defer a.keySteps.Unlock()
	plan, err := a.planKeyLocked(ctx, s)
	if err != nil || keptOnly(plan) {
		return ask, false, err
	}
	if s.Verb == keyplan.Destroy {
		p := change.Parameters{"name": s.Name, "version": s.Version}
		return Ask{Kind: policy.KeyDestroy, Parameters: p}, true, nil
	}
	if s.Version == 0 {
		s.Version = a.rootInUse() + 1
	}
	p := change.Parameters{"verb": string(s.Verb), "version": s.Version}
	if s.Early {
		p["early"] = true
	}
	if s.Compromised {
		p["compromised"] = true
	}
	return Ask{Kind: policy.RootRotate, Parameters: p}, true, nil
}

func keptOnly(p keyplan.Plan) bool {
	for _, e := range p.Edits {
		if !e.Kept {
			return false
		}
	}
	return true
}

// rootInUse is the number of the current root.
func (a *Appliance) rootInUse() uint64 {
	for _, v := range keyplan.Views(a.keys.Ring(), a.now()) {
		if v.Name == keyring.Root && v.State == keyring.Active {
			return v.Version
		}
	}
	return 0
}

// versions are the rows that a step of a key is based on.
func (a *Appliance) versions(name string) any {
	rows := []any{}
	for _, k := range a.keys.Ring().Keys() {
		if k.Name == name {
			rows = append(rows, []any{k.Name, k.Version, k.Revision})
		}
	}
	return rows
}

func (a *Appliance) keyBase(ctx context.Context, p change.Parameters) (any, error) {
	name := p.Text("name")
	_, err := a.PlanKey(ctx, keyplan.Step{Verb: keyplan.Destroy, Name: name, Version: p.Number("version")})
	return a.versions(name), err
}

func (a *Appliance) destroyKey(ctx context.Context, c Change) (any, error) {
	p := c.Parameters
	views, err := a.changeKey(ctx, keyplan.Step{Verb: keyplan.Destroy, Name: p.Text("name"), Version: p.Number("version")})
	return views, err
}

func rootStep(p change.Parameters) keyplan.Step {
	s := keyplan.Step{
		Verb: keyplan.Verb(p.Text("verb")), Name: keyring.Root, Version: p.Number("version"),
		Early: p.Truth("early"), Compromised: p.Truth("compromised"),
	}
	if s.Verb == keyplan.Rotate {
		s.Version = 0 // it is always the next that is readied
	}
	return s
}

func (a *Appliance) rootBase(ctx context.Context, p change.Parameters) (any, error) {
	if p.Text("verb") == string(keyplan.Rotate) && p.Number("version") != a.rootInUse()+1 {
		return nil, fmt.Errorf("%w: root %d is not the next", ErrInput, p.Number("version"))
	}
	_, err := a.PlanKey(ctx, rootStep(p))
	return a.versions(keyring.Root), err
}

// rotateRoot takes a step of the root. A rotation that was done is kept by the step
// itself, and so is an activation; one that was taken back is found by its root, which
// has no certificate any more.
func (a *Appliance) rotateRoot(ctx context.Context, c Change) (any, error) {
	p := c.Parameters
	s := rootStep(p)
	for _, v := range keyplan.Views(a.keys.Ring(), a.now()) {
		if s.Verb == keyplan.Retire && v.Name == keyring.Root && v.Version == s.Version && v.Cert == nil {
			return []keyplan.View{v}, nil
		}
	}
	if s.Verb == keyplan.Rotate && p.Number("version") != a.rootInUse()+1 {
		return nil, fmt.Errorf("root %d is not the next: %w", p.Number("version"), keyplan.ErrStep)
	}
	views, err := a.changeKey(ctx, s)
	return views, err
}
