package requests

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/change"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/policy"
)

// Effect carries out one kind of change once enough administrators have countersigned.
type Effect struct {
	// Base returns the state that the change is based on: a value that det-CBOR can
	// encode and that differs when anything did that the administrators would want to
	// look at again. It also refuses parameters that make no sense or that cannot be
	// carried out in the present state: the caller gets its errors, most of them
	// [parties.ErrInput].
	Base func(ctx context.Context, p change.Parameters) (any, error)
	// Do makes the change and returns the result for the caller. Every record that it makes
	// carries id, so that the request can be verified again. Do runs once for a request, and
	// again only if the appliance was interrupted, or the token or the store was unavailable,
	// before the end of the request was stored. It then finds out how far the first run came and
	// continues, or returns an error. It writes its own audit records.
	Do func(ctx context.Context, id change.ID, p change.Parameters) (any, error)
	// Grants marks a kind without Do: the caller makes the change, with [Service.Use]. A request
	// that has its quorum is granted: it stays taken until it is used or its time is over.
	Grants bool
}

func (s *Service) effect(k policy.Kind) (Effect, error) {
	e, ok := s.effects[k]
	if !ok {
		return e, fmt.Errorf("%w: this appliance does not do %s", parties.ErrInput, k)
	}
	return e, nil
}

// baseDomain is the prefix of the bytes that a base is the hash of, CHANGE.md.
const baseDomain = "countersign base v1"

var baseMode = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// base returns the hash of the state that a change is based on.
func (s *Service) base(ctx context.Context, k policy.Kind, p change.Parameters) (sum [32]byte, err error) {
	e, err := s.effect(k)
	if err != nil {
		return sum, err
	}
	state, err := e.Base(ctx, p)
	if err != nil {
		return sum, err
	}
	body, err := baseMode.Marshal([]any{k.String(), s.rules.Active().Hash(), state})
	if err != nil {
		return sum, fmt.Errorf("base of %s: %w", k, err)
	}
	return sha256.Sum256(append([]byte(baseDomain), body...)), nil
}

// transient reports whether an error leaves open if the change was made: token or store are
// unavailable.
func transient(err error) bool {
	for _, one := range []error{hsm.ErrUnavailable, hsm.ErrPIN, store.ErrUnavailable, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// advanceLocked carries out the change if it has its quorum.
func (s *Service) advanceLocked(ctx context.Context, id change.ID) (Change, error) {
	c, err := s.Get(ctx, id)
	if err != nil || !c.Ruling.Approved() || c.State != store.ChangeOpen {
		return c, err
	}
	// A change that has begun is finished even if its caller disconnects.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), executeTimeout)
	defer cancel()
	if err := s.refuseStaleLocked(ctx, c); err != nil {
		return c, err
	}
	c, err = s.takeLocked(ctx, id)
	if err != nil || c.State != store.ChangeTaken || c.Granted {
		return c, err
	}
	return s.executeLocked(ctx, c)
}

// takeLocked marks an open request as taken if it still has its quorum: an administrator who was suspended
// since it was counted has no vote.
func (s *Service) takeLocked(ctx context.Context, id change.ID) (Change, error) {
	s.admins.Lock()
	defer s.admins.Unlock()
	c, err := s.Get(ctx, id)
	if err != nil || !c.Ruling.Approved() || c.State != store.ChangeOpen {
		return c, err
	}
	rec := changeRecord(ctx, id, map[string]any{"event": "taken", "kind": c.Kind.String(), "signed": c.Signed, "required": c.Required})
	if err := s.store.EndChange(ctx, s.step(c, store.ChangeOpen, store.ChangeTaken), rec); err != nil {
		return c, fmt.Errorf("change %s: %w", id, err)
	}
	c.State, c.Granted = store.ChangeTaken, s.effects[c.Kind].Grants
	return c, nil
}

// executeTimeout bounds one change, in which the token may make several keys.
const executeTimeout = time.Minute

// executeLocked carries out a change that was taken, and stores its end with the transcript.
// While token or store are unavailable the request stays taken, and Resume continues it.
func (s *Service) executeLocked(ctx context.Context, c Change) (Change, error) {
	e, err := s.effect(c.Kind)
	var result any
	if err == nil {
		result, err = s.do(ctx, e, c)
	}
	if transient(err) {
		return c, fmt.Errorf("change %s is taken and will be tried again: %w", c.Hash.ID(), err)
	}
	to := store.ChangeExecuted
	if err != nil {
		to, c.Reason = store.ChangeFailed, err.Error()
	}
	end := s.step(c, store.ChangeTaken, to)
	if stored := s.store.EndChange(ctx, end, s.transcript(ctx, c, end.To)); stored != nil {
		return c, errors.Join(err, fmt.Errorf("change %s was made, but its end was not stored: %w", c.Hash.ID(), stored))
	}
	c.State, c.EndedAt, c.Result = end.To, end.At, result
	if err != nil {
		err = fmt.Errorf("change %s failed: %w", c.Hash.ID(), err)
	}
	return c, err
}

// do runs the effect of a change. A policy and a suspension have to leave enough administrators for each
// other, so that one waits for the other.
func (s *Service) do(ctx context.Context, e Effect, c Change) (any, error) {
	if c.Kind == policy.PolicyApply {
		s.admins.Lock()
		defer s.admins.Unlock()
	}
	return e.Do(ctx, c.Hash.ID(), c.Parameters)
}

// Resume continues the changes that were taken and did not end, and those that have their quorum and
// were not taken: the last signature and the mark are two transactions. It counts the signatures
// again: a row that says taken proves nothing.
func (s *Service) Resume(ctx context.Context) {
	s.changing.Lock()
	defer s.changing.Unlock()
	all, err := s.store.ChangesInForce(ctx)
	if err != nil {
		s.log.Error("change requests could not be read", "error", err)
		return
	}
	for _, row := range all {
		id := change.ID(row.ID).String()
		c, err := s.view(ctx, row)
		switch {
		case row.State == store.ChangeOpen && (err != nil || c.State != store.ChangeOpen || !c.Ruling.Approved()):
			continue
		case row.State == store.ChangeOpen:
			c, err = s.advanceLocked(ctx, row.ID)
		case err != nil:
		case c.Granted && !s.grantOver(c), s.using[c.Hash.ID()]:
			continue
		case c.Granted:
			if err = s.endTakenLocked(ctx, c, store.ChangeExpired); err == nil {
				continue
			}
		case c.State != store.ChangeTaken:
			err = errors.Join(fmt.Errorf("%w: %s", store.ErrForged, c.Reason), s.endTakenLocked(ctx, c, store.ChangeFailed))
		case !c.Ruling.Approved():
			err = s.reportLocked(ctx, c)
		default:
			c, err = s.executeLocked(ctx, c)
		}
		if err != nil {
			s.log.Error("interrupted change failed again", "change", id, "error", err)
			continue
		}
		if c.State == store.ChangeOpen { // a vote was taken away meanwhile
			continue
		}
		if c.Granted {
			s.log.Info("interrupted change is granted now", "change", id, "kind", c.Kind.String())
			continue
		}
		s.log.Info("interrupted change is made now", "change", id, "kind", c.Kind.String())
	}
}

// reportLocked closes a taken request that no longer has its quorum. An operator has to check
// whether its change was made.
func (s *Service) reportLocked(ctx context.Context, c Change) error {
	c.Reason = "interrupted, and the quorum no longer holds: check whether it was done"
	return errors.Join(&Waiting{c}, s.endTakenLocked(ctx, c, store.ChangeFailed))
}

// endTakenLocked closes a taken request whose effect does not run, for the reason c.Reason.
func (s *Service) endTakenLocked(ctx context.Context, c Change, to store.ChangeState) error {
	return s.store.EndChange(ctx, s.step(c, store.ChangeTaken, to), s.transcript(ctx, c, to))
}

// transcript returns the audit record of the end of a request: the document, all signatures and
// the result.
func (s *Service) transcript(ctx context.Context, c Change, end store.ChangeState) audit.Record {
	fields := map[string]any{
		"event": string(end), "kind": c.Kind.String(), "hash": c.Hash[:], "document": c.Document,
		"required": c.Required, "signed": c.Signed, "policy": s.rules.Active().Number,
	}
	if c.Reason != "" {
		fields["reason"] = c.Reason
	}
	row, err := s.store.Change(ctx, c.Hash.ID())
	if err != nil {
		fields["signatures_unread"] = err.Error() // each has a record of its own
	}
	var signatures []map[string]any
	for _, s := range row.Signatures {
		signatures = append(signatures, map[string]any{"signer": s.Signer[:], "signature": s.Signature, "at": s.At.Unix()})
	}
	fields["signatures"] = signatures
	return changeRecord(ctx, c.Hash.ID(), fields)
}

// Count returns how many requests are open, and how many were interrupted.
func (s *Service) Count(ctx context.Context) (open, interrupted int, err error) {
	all, err := s.store.ChangesInForce(ctx)
	for _, row := range all {
		c, viewErr := s.view(ctx, row)
		switch {
		case viewErr == nil && c.Granted:
		case row.State == store.ChangeTaken:
			interrupted++
		case row.State == store.ChangeOpen && s.now().Before(row.ExpiresAt):
			open++
		}
	}
	return open, interrupted, err
}
