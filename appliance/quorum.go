package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
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
		right, err := a.keys.CheckMAC(ctx, key, input, mac)
		if err != nil || right {
			return key, err
		}
	}
	return keyring.Key{}, store.ErrNotFound
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
		if err = nil; !slices.Contains(c.Signed, name) { // the mac key of a word was given up
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
