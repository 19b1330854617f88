package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
)

// localWord is the admin socket's countersignature. The seal of the request vouches for
// it, so that a writer of the database cannot give it. PROTOCOL.md §7.35.
func (a *Appliance) localWord() store.ChangeSignature { return store.ChangeSignature{At: a.now()} }

// judge fills in who countersigned and counts, who could, and what that comes to.
func (a *Appliance) judge(ctx context.Context, c *Change, signatures []store.ChangeSignature) error {
	admins, err := a.Admins(ctx)
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
		if name := signer(c.Hash, s, admins); able[name] {
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
	c.Ruling = policy.Decide(required, policy.Evidence{Verdict: protocol.Approve, Signers: c.Signed})
	return nil
}

// signer is the name of whoever made a signature, "" if it is nobody.
func signer(h change.Hash, s store.ChangeSignature, admins []store.Admin) string {
	if s.Signer == [8]byte{} {
		return policy.Local
	}
	signature, err := change.ParseSignature(s.Signature)
	if err != nil {
		return ""
	}
	for _, one := range admins {
		if one.ID == s.Signer && signature.Verify(h, one.Key) == nil {
			return one.Name
		}
	}
	return ""
}

// SignChange takes a countersignature of an open request: an administrator's COSE_Sign1
// (CHANGE.md), or without one the word of the admin socket. The one that completes the
// quorum makes the change. A signer who signs again counts once; what of his does not count
// any more is replaced. Errors wrap [store.ErrNotFound], [ErrOver], [ErrSigner],
// [change.ErrSignature] or what the change itself failed with; a quorum that is still not
// there is none.
func (a *Appliance) SignChange(ctx context.Context, id change.ID, raw []byte) (Change, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	return a.signLocked(ctx, id, raw)
}

func (a *Appliance) signLocked(ctx context.Context, id change.ID, raw []byte) (Change, error) {
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
	err = a.store.SignChange(ctx, id, row, rec)
	if errors.Is(err, store.ErrExists) {
		if err = nil; !slices.Contains(c.Signed, name) {
			err = a.store.ResignChange(ctx, id, row, rec)
		}
	}
	if err != nil {
		return c, fmt.Errorf("change %s: %w", id, err)
	}
	return a.advanceLocked(ctx, id)
}

func (a *Appliance) checkSignature(ctx context.Context, c Change, raw []byte) (row store.ChangeSignature, name string, err error) {
	if raw == nil && !a.policy.Load().CountsLocal() {
		return row, "", fmt.Errorf("the admin socket does not count: %w", ErrSigner)
	}
	if raw == nil {
		return a.localWord(), policy.Local, nil
	}
	s, err := change.ParseSignature(raw)
	if err != nil {
		return row, "", err
	}
	admins, err := a.Admins(ctx)
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
