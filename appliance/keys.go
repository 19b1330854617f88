package appliance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// Keys are all key versions as they stand now.
func (a *Appliance) Keys() []keyplan.View { return keyplan.Views(a.keys.Ring(), a.now()) }

// PlanKey says what a step of a key's life comes to, and does nothing. Errors are those
// of [keyplan.New].
func (a *Appliance) PlanKey(ctx context.Context, s keyplan.Step) ([]keyplan.View, error) {
	a.keySteps.Lock()
	defer a.keySteps.Unlock()
	plan, err := a.planKeyLocked(ctx, s)
	if err != nil {
		return nil, err
	}
	return plan.Preview(a.keys.Ring()), nil
}

// ChangeKey is [Appliance.ChangeKeyWithin] for as long as requests are good by default.
func (a *Appliance) ChangeKey(ctx context.Context, s keyplan.Step) ([]keyplan.View, error) {
	return a.ChangeKeyWithin(ctx, s, 0)
}

// ChangeKeyWithin takes a step, or asks for it where it takes a quorum, which has until
// life is over: the error is a [*Waiting] then. Other errors are those of
// [keyplan.New], [Appliance.Ask], and of token and store.
func (a *Appliance) ChangeKeyWithin(ctx context.Context, s keyplan.Step, life time.Duration) ([]keyplan.View, error) {
	ask, gated, err := a.askForKey(ctx, s)
	if err != nil {
		return nil, err
	}
	if !gated {
		return a.changeKey(ctx, s)
	}
	ask.Life = life
	c, err := a.Ask(ctx, ask)
	if err != nil {
		return nil, err
	}
	result, err := c.done()
	views, _ := result.([]keyplan.View)
	return views, err
}

// changeKey takes a step: what it needs of the token is made first, then rows, settings
// and audit record become durable in one transaction, and only then is anything of it
// used. Interrupted anywhere, the same step again goes on where it stopped: a key that
// was made and not stored is taken up, a step that was stored is not taken twice, and
// a key that was given up and not removed is removed.
func (a *Appliance) changeKey(ctx context.Context, s keyplan.Step) ([]keyplan.View, error) {
	a.keySteps.Lock()
	defer a.keySteps.Unlock()
	// A step before may have been stored although the store could not say so.
	if err := a.keys.Reload(ctx, a.store); err != nil {
		return nil, fmt.Errorf("%s %s: %w", s.Verb, s.Name, err)
	}
	plan, err := a.planKeyLocked(ctx, s)
	if err != nil {
		return nil, err
	}
	change, err := keylife.Carry(ctx, a.keys, plan, a.tokenLabel)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", s.Verb, s.Name, err)
	}
	if s.Name == keyring.MAC {
		change.MAC = plan.SealedUnder(a.keys.Ring())
	}
	if len(change.Add)+len(change.Update) > 0 {
		if err := a.store.ChangeKeys(ctx, change, keyRecord(s, change)); err != nil {
			return nil, fmt.Errorf("%s %s: %w", s.Verb, s.Name, err)
		}
	}
	// Also where nothing was to be stored: an earlier run may have come no further.
	if err := errors.Join(keylife.Erase(ctx, a.keys, plan), a.keys.Reload(ctx, a.store)); err != nil {
		return nil, fmt.Errorf("%s %s is stored, and not complete before it is repeated: %w", s.Verb, s.Name, err)
	}
	a.renewals.wake()
	return plan.Views(a.keys.Ring(), a.now()), nil
}

// planKeyLocked adds to the keyring's plan what only the store can know: nothing that
// is stored may depend on what is given up.
func (a *Appliance) planKeyLocked(ctx context.Context, s keyplan.Step) (keyplan.Plan, error) {
	plan, err := keyplan.New(a.keys.Ring(), s, a.now())
	if err != nil || s.Name != keyring.MAC && s.Name != keyring.Wrap {
		return plan, err
	}
	switch s.Verb {
	case keyplan.Suspend, keyplan.Retire, keyplan.Destroy:
		return plan, a.freed(ctx, plan)
	}
	return plan, nil
}

// freed tells whether nothing is under the versions that a plan gives up.
func (a *Appliance) freed(ctx context.Context, plan keyplan.Plan) error {
	for _, e := range plan.Edits {
		key, there := a.keys.Ring().Find(e.Name, e.Version)
		if e.Kept || !there || !key.OnToken || !key.DestroyedAt.IsZero() {
			continue
		}
		total, under, err := a.under(ctx, key)
		if err == nil && under > 0 {
			err = fmt.Errorf("%d of %d records are still under %s: %w", under, total, keyring.Label(e.Name, e.Version), keyplan.ErrEarly)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keyRecord is the audit record of a step: each row with its dates, as it is from then on.
func keyRecord(s keyplan.Step, c store.KeyChange) audit.Record {
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
	return audit.NewRecord(audit.KindKeys, "key/"+s.Name, fields)
}
