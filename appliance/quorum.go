package appliance

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
)

// localWord is the admin socket's countersignature: a MAC by the token, so that nobody
// who writes to the database gives it. PROTOCOL.md §7.35.
func (a *Appliance) localWord(ctx context.Context, h change.Hash) (s store.ChangeSignature, err error) {
	key, err := a.keys.Current(keyring.MAC, a.now())
	if err != nil {
		return s, err
	}
	s.At = a.now()
	s.Signature, err = a.keys.MAC(ctx, key, wordInput(h))
	return s, err
}

func wordInput(h change.Hash) []byte {
	return protocol.RecordInput(protocol.Record{
		Kind: "change", Client: protocol.ClientID(h.ID()), Verifier: h[:], Status: uint64(store.Active), Roles: []string{policy.Local}, Version: 1,
	})
}

// judge fills in who countersigned and counts, who could, and what that comes to.
func (a *Appliance) judge(ctx context.Context, c *Change, signatures []store.ChangeSignature) error {
	admins, err := a.admins(ctx)
	if err != nil {
		return err
	}
	rules := a.policy.Load()
	able := map[string]bool{}
	for _, one := range admins {
		if one.Status == store.Active {
			able[one.Name] = true
		}
	}
	if rules.CountsLocal() {
		able[policy.Local] = true
	}
	for _, s := range signatures {
		name, err := a.signer(ctx, c.Hash, s, admins)
		if err != nil {
			return err
		}
		if able[name] {
			c.Signed = append(c.Signed, name)
			delete(able, name)
		}
	}
	for name := range able {
		c.Missing = append(c.Missing, name)
	}
	slices.Sort(c.Missing)
	required := rules.Quorum(c.Kind)
	c.Required = required.Administrators
	c.Decision = policy.Decide(required, policy.Evidence{Choice: policy.Approve, Signers: c.Signed})
	return nil
}

// signer is the name of whoever made a signature, "" if it is nobody.
func (a *Appliance) signer(ctx context.Context, h change.Hash, s store.ChangeSignature, admins []store.Admin) (string, error) {
	if s.Signer == [8]byte{} {
		_, err := a.macFor(ctx, wordInput(h), s.Signature)
		if errors.Is(err, store.ErrNotFound) {
			return "", nil
		}
		return policy.Local, err
	}
	signature, err := change.ParseSignature(s.Signature)
	if err != nil {
		return "", nil
	}
	for _, one := range admins {
		if one.ID == s.Signer && signature.Verify(h, one.Key) == nil {
			return one.Name, nil
		}
	}
	return "", nil
}

// macFor is the version of mac that made a MAC, or [store.ErrNotFound].
func (a *Appliance) macFor(ctx context.Context, input, mac []byte) (keyring.Key, error) {
	versions, err := a.keys.MACKeys(a.now())
	if err != nil {
		return keyring.Key{}, err
	}
	for _, key := range versions {
		made, err := a.keys.MAC(ctx, key, input)
		if err != nil {
			return key, err
		}
		if hmac.Equal(made, mac) {
			return key, nil
		}
	}
	return keyring.Key{}, store.ErrNotFound
}

// SignChange takes a countersignature of an open request: an administrator's COSE_Sign1
// (CHANGE.md), or without one the word of the admin socket. The one that completes the
// quorum makes the change. A signer who signs again counts once. Errors wrap
// [store.ErrNotFound], [ErrOver], [ErrSigner], [change.ErrSignature] or what the change
// itself failed with; a quorum that is still not there is none.
func (a *Appliance) SignChange(ctx context.Context, id change.ID, raw []byte) (Change, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	c, err := a.openLocked(ctx, id)
	if err != nil {
		return c, err
	}
	row, name, err := a.checkSignature(ctx, c, raw)
	if err != nil {
		return c, err
	}
	if err := a.refuseStaleLocked(ctx, c); err != nil {
		return c, err
	}
	rec := changeRecord(id, map[string]any{"event": "countersigned", "by": name, "signer": row.Signer[:], "signature": row.Signature})
	if err := a.store.SignChange(ctx, id, row, rec); err != nil && !errors.Is(err, store.ErrExists) {
		return c, fmt.Errorf("change %s: %w", id, err)
	}
	return a.advanceLocked(ctx, id)
}

func (a *Appliance) checkSignature(ctx context.Context, c Change, raw []byte) (row store.ChangeSignature, name string, err error) {
	if raw == nil {
		row, err = a.localWord(ctx, c.Hash)
		return row, policy.Local, err
	}
	s, err := change.ParseSignature(raw)
	if err != nil {
		return row, "", err
	}
	admins, err := a.admins(ctx)
	if err != nil {
		return row, "", err
	}
	i := slices.IndexFunc(admins, func(one store.Admin) bool { return one.ID == s.Signer })
	switch {
	case i < 0:
		return row, "", fmt.Errorf("key %s: %w", s.Signer, ErrSigner)
	case admins[i].Status != store.Active:
		return row, "", fmt.Errorf("%s is %s: %w", admins[i].Name, admins[i].Status, ErrSigner)
	}
	return store.ChangeSignature{Signer: s.Signer, Signature: raw, At: a.now()}, admins[i].Name, s.Verify(c.Hash, admins[i].Key)
}

// refuseStaleLocked ends a request that was made for another state than that of now.
func (a *Appliance) refuseStaleLocked(ctx context.Context, c Change) error {
	base, err := a.base(ctx, c.Kind, c.Parameters)
	if transient(err) {
		return err
	}
	if err == nil && base == c.Base {
		return nil
	}
	if c.Reason = "stale: what it is based on has changed"; err != nil {
		c.Reason = "stale: " + err.Error()
	}
	return errors.Join(fmt.Errorf("change %s is %s: %w", c.Hash.ID(), c.Reason, ErrOver), a.endLocked(ctx, c, store.ChangeFailed))
}

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
	if err != nil || !c.Decision.Approved() || c.State != store.ChangeOpen {
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
		result, err = e.Do(ctx, c.Parameters)
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
		case !c.Decision.Approved():
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
	end := a.step(c, store.ChangeTaken, store.ChangeFailed)
	return errors.Join(&Waiting{c}, a.store.EndChange(ctx, end, a.transcript(ctx, c, store.ChangeFailed)))
}

// transcript is the audit record of the end of a request: all that was signed, by whom
// and what came of it.
func (a *Appliance) transcript(ctx context.Context, c Change, end store.ChangeState) store.Record {
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
