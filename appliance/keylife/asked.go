package keylife

import (
	"context"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/parties"
	"countersign/policy"
)

// kindOf has the kind of request that each step of a key but the root requires. A step without a kind
// grants nothing and does not wait.
var kindOf = map[keyplan.Verb]policy.Kind{
	keyplan.Create: policy.KeyRotate, keyplan.Rotate: policy.KeyRotate, keyplan.Activate: policy.KeyActivate,
	keyplan.Retire: policy.KeyRetire, keyplan.Resume: policy.KeyResume, keyplan.Destroy: policy.KeyDestroy,
}

// need is what a step needs before it is taken.
type need int

const (
	aVote   need = iota // the countersignatures of its request
	noVote              // none: it grants nothing
	nothing             // none: it changes nothing, and may be taken only as long as it does not
)

// draft drafts the change request of a step, if it needs a vote.
func (k *Service) draft(ctx context.Context, s keyplan.Step) (d change.Draft, needs need, err error) {
	kind, gated := kindOf[s.Verb]
	if s.Name == keyring.Root && s.Verb != keyplan.Destroy {
		kind, gated = policy.RootRotate, true
	}
	if !gated {
		return d, noVote, nil
	}
	ring := k.keys.Ring()
	plan, err := k.planOn(ctx, ring, s)
	first, changes := firstEdit(plan)
	if err != nil || !changes {
		return d, nothing, err
	}
	p := change.Parameters{"name": s.Name, "version": first.Version}
	switch kind {
	case policy.RootRotate:
		p = change.Parameters{"verb": string(s.Verb), "version": s.Version}
		if s.Version == 0 {
			p["version"] = k.rootInUse(ring) + 1
		}
	case policy.KeyRotate:
		p["verb"], p["revision"] = string(s.Verb), revision(ring, first.Name, first.Version)
	case policy.KeyActivate, policy.KeyRetire, policy.KeyResume:
		p["revision"] = revision(ring, first.Name, first.Version)
	}
	for name, given := range map[string]bool{"early": s.Early, "compromised": s.Compromised, "rules_out": rulesOut(ring, plan)} {
		if given {
			p[name] = true
		}
	}
	return change.Draft{Kind: kind, Parameters: p}, aVote, nil
}

// Preview returns the change request that a step would make, and stores nothing. asks is false if the step needs no
// vote.
func (k *Service) Preview(ctx context.Context, s keyplan.Step, life time.Duration) (c requests.Change, asks bool, err error) {
	d, needs, err := k.draft(ctx, s)
	if err != nil || needs != aVote {
		return c, false, err
	}
	d.Life = life
	c, err = k.requests.Preview(ctx, d)
	return c, true, err
}

// rulesOut reports whether an activation puts a version into use that rules out every earlier one.
func rulesOut(ring *keyring.Ring, p keyplan.Plan) bool {
	return p.Verb == keyplan.Activate && slices.ContainsFunc(p.Edits, func(e keyplan.Edit) bool {
		row, _ := ring.Find(e.Name, e.Version)
		return row.RulesOut && e.RetiredAt.IsZero()
	})
}

// seen refuses a plan that rules versions out, unless the signers of its request see that.
func seen(ring *keyring.Ring, plan keyplan.Plan, p change.Parameters) error {
	if rulesOut(ring, plan) != p.Truth("rules_out") {
		return fmt.Errorf("the request does not say rightly whether earlier versions are ruled out: ask again: %w", keyplan.ErrStep)
	}
	return nil
}

// firstEdit returns the row that a step is about. changes is false if the step changes no row.
func firstEdit(p keyplan.Plan) (first keyplan.Edit, changes bool) {
	for i, e := range p.Edits {
		if i == 0 {
			first = e
		}
		changes = changes || !e.Kept
	}
	return first, changes
}

// revision returns the revision of a row, or 0 if the row does not exist.
func revision(ring *keyring.Ring, name string, version uint64) uint64 {
	row, _ := ring.Find(name, version)
	return row.Revision
}

// rootInUse returns the number of the current root.
func (k *Service) rootInUse(ring *keyring.Ring) uint64 {
	for _, v := range keyplan.Views(ring, k.now()) {
		if v.Name == keyring.Root && v.State == keyring.Active {
			return v.Version
		}
	}
	return 0
}

// versions returns the rows that a step of a key is based on.
func versions(ring *keyring.Ring, name string) any {
	rows := []any{}
	for _, row := range ring.Keys() {
		if row.Name == name {
			rows = append(rows, []any{row.Name, row.Version, row.Revision})
		}
	}
	return rows
}

func rootStep(p change.Parameters) keyplan.Step {
	s := keyplan.Step{
		Verb: keyplan.Verb(p.Text("verb")), Name: keyring.Root, Version: p.Number("version"),
		Early: p.Truth("early"), Compromised: p.Truth("compromised"),
	}
	if s.Verb == keyplan.Rotate {
		s.Version = 0 // a rotation always prepares the next root
	}
	return s
}

func (k *Service) rootBase(ctx context.Context, p change.Parameters) (any, error) {
	ring := k.keys.Ring()
	if p.Text("verb") == string(keyplan.Rotate) && p.Number("version") != k.rootInUse(ring)+1 {
		return nil, fmt.Errorf("%w: root %d is not the next", parties.ErrInput, p.Number("version"))
	}
	plan, err := k.planOn(ctx, ring, rootStep(p))
	if err == nil {
		err = seen(ring, plan, p)
	}
	return versions(ring, keyring.Root), err
}

// rotateRoot takes a step of the root. Repeating a rotation or an activation that was done
// changes nothing; a retired next root is recognized by its missing certificate.
func (k *Service) rotateRoot(ctx context.Context, _ change.ID, p change.Parameters) (any, error) {
	s := rootStep(p)
	for _, v := range keyplan.Views(k.keys.Ring(), k.now()) {
		if s.Verb == keyplan.Retire && v.Name == keyring.Root && v.Version == s.Version && v.Cert == nil {
			return []keyplan.View{v}, nil
		}
	}
	if s.Verb == keyplan.Rotate && p.Number("version") != k.rootInUse(k.keys.Ring())+1 {
		return nil, fmt.Errorf("root %d is not the next: %w", p.Number("version"), keyplan.ErrStep)
	}
	views, err := k.take(ctx, s, func(plan keyplan.Plan) error {
		if onlyIdle(plan) == nil {
			return nil
		}
		return seen(k.keys.Ring(), plan, p)
	})
	return views, err
}

// stepOf reads the parameters that draft writes for any key but the root.
func stepOf(kind policy.Kind, p change.Parameters) keyplan.Step {
	s := keyplan.Step{Name: p.Text("name"), Version: p.Number("version"), Early: p.Truth("early"), Compromised: p.Truth("compromised")}
	for verb, of := range kindOf {
		if of == kind && (kind != policy.KeyRotate || string(verb) == p.Text("verb")) {
			s.Verb = verb
		}
	}
	return s
}

// stepEffect returns the effect of a kind of step.
func (k *Service) stepEffect(kind policy.Kind) requests.Effect {
	return requests.Effect{
		Base: func(ctx context.Context, p change.Parameters) (any, error) {
			s, ring := stepOf(kind, p), k.keys.Ring()
			if s.Name == keyring.Root && kind != policy.KeyDestroy {
				return nil, fmt.Errorf("%w: %s is not for the root", parties.ErrInput, kind)
			}
			return versions(ring, s.Name), k.unchanged(ctx, ring, change.Draft{Kind: kind, Parameters: p})
		},
		Do: func(ctx context.Context, _ change.ID, p change.Parameters) (any, error) {
			s, ring := stepOf(kind, p), k.keys.Ring()
			if kind != policy.KeyDestroy && revision(ring, s.Name, s.Version) > p.Number("revision") {
				return k.wasTaken(s, p)
			}
			if err := k.unchanged(ctx, ring, change.Draft{Kind: kind, Parameters: p}); err != nil {
				return nil, err
			}
			views, err := k.take(ctx, s, func(plan keyplan.Plan) error {
				if onlyIdle(plan) == nil {
					return nil // it was stored before, although the store could not report it
				}
				return asRequested(k.keys.Ring(), plan, p)
			})
			return views, err
		},
	}
}

// unchanged refuses a step that is not possible, or that would now change another row than the request names.
func (k *Service) unchanged(ctx context.Context, ring *keyring.Ring, r change.Draft) error {
	plan, err := k.planOn(ctx, ring, stepOf(r.Kind, r.Parameters))
	if err != nil {
		return err
	}
	return asRequested(ring, plan, r.Parameters)
}

// asRequested refuses a plan that changes another row than the request names.
func asRequested(ring *keyring.Ring, plan keyplan.Plan, p change.Parameters) error {
	s := plan.Step
	if s.Verb == keyplan.Destroy {
		return nil
	}
	if first, _ := firstEdit(plan); first.Version != s.Version || revision(ring, s.Name, s.Version) != p.Number("revision") {
		return fmt.Errorf("%s was changed since: %w", keyring.Label(s.Name, s.Version), keyplan.ErrStep)
	}
	return seen(ring, plan, p)
}

// wasTaken finds out whether a step was taken before it was interrupted: then the row is at the next
// revision, as the step leaves it. A row that another step has changed stays as it is.
func (k *Service) wasTaken(s keyplan.Step, p change.Parameters) (any, error) {
	now := k.now()
	row, _ := k.keys.Ring().Find(s.Name, s.Version)
	is := map[keyplan.Verb]bool{
		keyplan.Create: true, keyplan.Rotate: true, keyplan.Activate: row.Begun(now),
		keyplan.Retire: !row.RetiredAt.IsZero(), keyplan.Resume: row.SuspendedAt.IsZero(),
	}[s.Verb]
	if !is || row.Revision != p.Number("revision")+1 {
		return nil, fmt.Errorf("%s was changed since: %w", row.Label(), keyplan.ErrStep)
	}
	for _, v := range keyplan.Views(k.keys.Ring(), now) {
		if v.Name == s.Name && v.Version == s.Version {
			return []keyplan.View{v}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", row.Label(), keyplan.ErrKeyName)
}
