package requests

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/change/quorum"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// localWord is the admin socket's countersignature. The seal of the request protects it, so that
// a writer of the database cannot forge it. PROTOCOL.md §7.35.
func (s *Service) localWord() store.ChangeSignature { return store.ChangeSignature{At: s.now()} }

// count sets who signed and counts, who could still sign, and the ruling that follows.
func (s *Service) count(ctx context.Context, c *Change, signatures []store.ChangeSignature) error {
	admins, err := s.judge.Admins(ctx)
	if err != nil {
		return err
	}
	rules := s.rules.Active()
	able := map[string]bool{}
	for _, one := range admins {
		if one.Status == store.Active {
			able[one.Name] = true
		}
	}
	if rules.CountsLocal() {
		able[policy.Local] = true
	}
	required, err := s.requirement(ctx, c.Request)
	if err != nil {
		return err
	}
	for _, one := range signatures {
		if name := quorum.Signer(c.Hash, one, admins); able[name] {
			c.Signed = append(c.Signed, name)
			delete(able, name)
		}
	}
	for name := range able {
		c.Missing = append(c.Missing, name)
	}
	slices.Sort(c.Missing)
	c.Required = required.Administrators
	c.Ruling = policy.Decide(required, policy.Evidence{Verdict: protocol.Approve, Signers: c.Signed})
	return nil
}

// requirement returns what a request takes now. The administrator whom it resumes is not among those who are left,
// neither before its effect nor after it.
func (s *Service) requirement(ctx context.Context, r change.Request) (policy.Requirement, error) {
	rules := s.rules.Active()
	switch {
	case r.Kind == policy.AdminAdd && r.Parameters.Truth("resume"):
		left, err := s.judge.Left(ctx, rules.Policy, r.Parameters.Text("name"))
		return rules.QuorumResuming(left), err
	case r.Parameters.RulesOut():
		return rules.QuorumRulingOut(r.Kind), nil
	}
	return rules.Quorum(r.Kind), nil
}

// Sign adds a countersignature to an open request: an administrator's COSE_Sign1 (CHANGE.md), or
// the admin socket's word if raw is nil. The signature that completes the quorum makes the
// change. An administrator who signs twice counts once; a new signature replaces one that no
// longer counts. Errors wrap [store.ErrNotFound], [ErrOver], [ErrSigner], [change.ErrSignature]
// or an error of the effect. An incomplete quorum is no error.
func (s *Service) Sign(ctx context.Context, id change.ID, raw []byte) (Change, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.signLocked(ctx, id, raw)
}

func (s *Service) signLocked(ctx context.Context, id change.ID, raw []byte) (Change, error) {
	c, err := s.openLocked(ctx, id)
	if err != nil {
		return c, err
	}
	row, name, err := s.checkSignature(ctx, c, raw)
	if err != nil {
		return c, err
	}
	if err := s.refuseStaleLocked(ctx, c); err != nil {
		return c, err
	}
	if raw != nil {
		ctx = audit.By(ctx, audit.ActorOf(ctx).With(name))
	}
	rec := changeRecord(ctx, id, map[string]any{"event": "countersigned", "by": name, "signer": row.Signer[:], "signature": row.Signature})
	err = s.store.SignChange(ctx, id, row, rec)
	if errors.Is(err, store.ErrExists) {
		if err = nil; !slices.Contains(c.Signed, name) {
			err = s.store.ResignChange(ctx, id, row, rec)
		}
	}
	if err != nil {
		return c, fmt.Errorf("change %s: %w", id, err)
	}
	c, err = s.advanceLocked(ctx, id)
	c.SignedAs = name
	return c, err
}

func (s *Service) checkSignature(ctx context.Context, c Change, raw []byte) (row store.ChangeSignature, name string, err error) {
	if raw == nil && !s.rules.Active().CountsLocal() {
		return row, "", fmt.Errorf("the admin socket does not count as an administrator under this policy: %w", ErrSigner)
	}
	if raw == nil {
		return s.localWord(), policy.Local, nil
	}
	signature, err := change.ParseSignature(raw)
	if err != nil {
		return row, "", err
	}
	admins, err := s.judge.Admins(ctx)
	if err != nil {
		return row, "", err
	}
	i := slices.IndexFunc(admins, func(one store.Admin) bool { return one.ID == signature.Signer })
	switch {
	case i < 0:
		return row, "", fmt.Errorf("key %s: %w", signature.Signer, ErrSigner)
	case admins[i].Status != store.Active:
		return row, "", fmt.Errorf("%s is %s: %w", admins[i].Name, admins[i].Status, ErrSigner)
	}
	return store.ChangeSignature{Signer: signature.Signer, Signature: raw, At: s.now()}, admins[i].Name, signature.Verify(c.Hash, admins[i].Key)
}

// refuseStaleLocked closes a request that is based on another state than the present one.
func (s *Service) refuseStaleLocked(ctx context.Context, c Change) error {
	base, err := s.base(ctx, c.Kind, c.Parameters)
	if transient(err) {
		return err
	}
	if err == nil && base == c.Base {
		return nil
	}
	if c.Reason = "stale: what it is based on has changed"; err != nil {
		c.Reason = "stale: " + err.Error()
	}
	return errors.Join(fmt.Errorf("change %s is %s: %w", c.Hash.ID(), c.Reason, ErrOver), s.endLocked(ctx, c, store.ChangeFailed))
}
