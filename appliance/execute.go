package appliance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
)

// transient errors say nothing about what was done: token or store are away.
func transient(err error) bool {
	for _, one := range []error{hsm.ErrUnavailable, hsm.ErrPIN, store.ErrUnavailable, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// advanceLocked makes the change if the quorum is there.
func (a *Appliance) advanceLocked(ctx context.Context, id change.ID) (Change, error) {
	c, err := a.ChangeOf(ctx, id)
	if err != nil || !c.Ruling.Approved() || c.State != store.ChangeOpen {
		return c, err
	}
	// Whoever asked may go away; what was begun is brought to its end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), executeTimeout)
	defer cancel()
	if err := a.refuseStaleLocked(ctx, c); err != nil {
		return c, err
	}
	rec := changeRecord(id, map[string]any{"event": "taken", "kind": c.Kind.String(), "signed": c.Signed, "required": c.Required})
	if err := a.store.EndChange(ctx, a.step(c, store.ChangeOpen, store.ChangeTaken), rec); err != nil {
		return c, fmt.Errorf("change %s: %w", id, err)
	}
	return a.executeLocked(ctx, c)
}

// executeTimeout bounds one change, in which the token may make several keys.
const executeTimeout = time.Minute

// executeLocked makes a change that was taken, and stores its end with the transcript.
// While token or store are away it stays taken, and is gone on with later.
func (a *Appliance) executeLocked(ctx context.Context, c Change) (Change, error) {
	e, err := a.effect(c.Kind)
	var result any
	if err == nil {
		result, err = e.Do(ctx, c)
	}
	if transient(err) {
		return c, fmt.Errorf("change %s is taken and will be gone on with: %w", c.Hash.ID(), err)
	}
	to := store.ChangeExecuted
	if err != nil {
		to, c.Reason = store.ChangeFailed, err.Error()
	}
	end := a.step(c, store.ChangeTaken, to)
	if stored := a.store.EndChange(ctx, end, a.transcript(ctx, c, end.To)); stored != nil {
		return c, errors.Join(err, fmt.Errorf("change %s was made and its end was not stored: %w", c.Hash.ID(), stored))
	}
	c.State, c.EndedAt, c.Result = end.To, end.At, result
	if err != nil {
		err = fmt.Errorf("change %s failed: %w", c.Hash.ID(), err)
	}
	return c, err
}

// resumeChanges goes on with what was taken and not brought to its end. The quorum is
// judged again: a row that says taken proves nothing.
func (a *Appliance) resumeChanges(ctx context.Context) {
	a.changing.Lock()
	defer a.changing.Unlock()
	all, err := a.store.ListChanges(ctx, changesShown)
	if err != nil {
		a.log.Error("change requests could not be read", "error", err)
		return
	}
	for _, row := range all {
		if row.State != store.ChangeTaken {
			continue
		}
		id := change.ID(row.ID).String()
		c, err := a.view(ctx, row)
		switch {
		case err != nil:
		case c.State != store.ChangeTaken:
			err = errors.Join(fmt.Errorf("%w: %s", ErrForged, c.Reason), a.endTakenLocked(ctx, c))
		case !c.Ruling.Approved():
			err = a.reportLocked(ctx, c)
		default:
			c, err = a.executeLocked(ctx, c)
		}
		if err != nil {
			a.log.Error("change was interrupted and could not be gone on with", "change", id, "error", err)
			continue
		}
		a.log.Info("change was interrupted and is made now", "change", id, "kind", c.Kind.String())
	}
}

// reportLocked ends what was taken once and would not be as things are now: whether it
// was done is for people to find out.
func (a *Appliance) reportLocked(ctx context.Context, c Change) error {
	c.Reason = "interrupted, and the quorum is not there any more: look whether it was done"
	return errors.Join(&Waiting{c}, a.endTakenLocked(ctx, c))
}

// endTakenLocked ends a request that is taken and is not to be made. c.Reason says why.
func (a *Appliance) endTakenLocked(ctx context.Context, c Change) error {
	return a.store.EndChange(ctx, a.step(c, store.ChangeTaken, store.ChangeFailed), a.transcript(ctx, c, store.ChangeFailed))
}

// transcript is the audit record of the end of a request: all that was signed, by whom
// and what came of it.
func (a *Appliance) transcript(ctx context.Context, c Change, end store.ChangeState) audit.Record {
	fields := map[string]any{
		"event": string(end), "kind": c.Kind.String(), "hash": c.Hash[:], "document": c.Document,
		"required": c.Required, "signed": c.Signed, "policy": a.policy.Load().version,
	}
	if c.Reason != "" {
		fields["reason"] = c.Reason
	}
	row, err := a.store.Change(ctx, c.Hash.ID())
	if err != nil {
		fields["signatures_unread"] = err.Error() // each has a record of its own
	}
	var signatures []map[string]any
	for _, s := range row.Signatures {
		signatures = append(signatures, map[string]any{"signer": s.Signer[:], "signature": s.Signature, "at": s.At.Unix()})
	}
	fields["signatures"] = signatures
	return changeRecord(c.Hash.ID(), fields)
}
