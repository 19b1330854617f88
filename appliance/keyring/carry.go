package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol/trust"
)

// Carry does on the token what a plan asks for, and gives what the store has to keep.
// Nothing is used before it is stored and [Keyring.Reload] has read it: what an
// interruption leaves is a key without a row, which the same step takes up when it is
// repeated. label names the token in the rows of what was made.
func (r *Keyring) Carry(ctx context.Context, p Plan, label string) (store.KeyChange, error) {
	v := r.live.Load()
	c := store.KeyChange{Settings: p.trust(v.settings)}
	for i := range p.Edits {
		e := &p.Edits[i]
		if e.generated {
			if err := r.generate(ctx, e); err != nil {
				return c, err
			}
			e.Tokens = []string{label}
		}
	}
	for i := range p.Edits {
		e := &p.Edits[i]
		if e.certified {
			if err := r.certify(ctx, e, p.Edits); err != nil {
				return c, err
			}
		}
		switch {
		case e.Kept:
		case e.IsNew:
			c.Add = append(c.Add, e.Key)
		default:
			c.Update = append(c.Update, e.Key)
		}
	}
	return c, nil
}

// generate makes the key of a new version. One with its label is on the token already
// if this step was interrupted after it was made, or if the store is an old copy and the
// key is in use: so it is taken up and never replaced, though its sealed copy is lost.
func (r *Keyring) generate(ctx context.Context, e *Edit) error {
	label := Label(e.Name, e.Version)
	row, err := born(ctx, r.token, e.Key)
	if errors.Is(err, hsm.ErrExists) {
		var found hsm.Key
		if found, err = r.leftBehind(ctx, label, usages[e.Name]); err == nil {
			row, err = rowOf(found, e.Key)
		}
	}
	if err != nil {
		return fmt.Errorf("making %s: %w", label, err)
	}
	e.Key = row
	return nil
}

// leftBehind finds a key that was made and never stored.
func (r *Keyring) leftBehind(ctx context.Context, label string, usage hsm.Usage) (hsm.Key, error) {
	all, err := r.token.Keys(ctx)
	if err != nil {
		return hsm.Key{}, err
	}
	var found []hsm.Key
	for _, k := range all {
		if k.Label == label {
			found = append(found, k)
		}
	}
	if len(found) != 1 || found[0].Usage != usage {
		return hsm.Key{}, fmt.Errorf("the token has a key of this label that is not ours: %w", hsm.ErrExists)
	}
	if slices.ContainsFunc(r.Keys(), func(k Key) bool { return k.ID == found[0].ID }) {
		return hsm.Key{}, fmt.Errorf("key %s is another version: %w", found[0].ID, hsm.ErrExists)
	}
	k := found[0]
	k.Copied, err = r.wasCopied(ctx, k.ID)
	return k, err
}

// wasCopied reads off the token whether sealed copies of a key were made at its birth.
func (r *Keyring) wasCopied(ctx context.Context, id hsm.KeyID) (bool, error) {
	objects, err := r.token.Objects(ctx)
	return slices.ContainsFunc(objects, func(o hsm.Object) bool {
		return bytes.Equal(o.ID, id[:]) && o.Told&^o.True&hsm.AttrNeverExtractable != 0
	}), err
}

// certify signs the certificate of a row: of a root its own RootCert, which names the
// root after it, of another key a KeyCert by its root.
func (r *Keyring) certify(ctx context.Context, e *Edit, edits []Edit) (err error) {
	v := r.live.Load()
	if e.Name != Root {
		k, _ := certifiedNamed(e.Name)
		root, _ := v.find(Root, e.Root)
		cert := k.certificate(e.Key)
		if e.rulesOut {
			cert.MinEpoch = &cert.Epoch
		}
		e.Cert, err = trust.SignKeyCert(ctx, r.Signer(root), cert)
		return err
	}
	after, ok := v.find(Root, e.Version+1)
	for _, other := range edits {
		if other.Name == Root && other.Version == e.Version+1 {
			after, ok = Key{Key: other.Key}, true
		}
	}
	if !ok {
		return fmt.Errorf("%s: the root after it: %w", Label(Root, e.Version), ErrNoKey)
	}
	root, _ := v.find(Root, e.Version)
	e.Cert, err = trust.SignRootCert(ctx, r.Signer(root), trust.RootCert{
		Number: e.Version, Key: root.Point, NextHash: sha256.Sum256(after.Public),
	})
	return err
}
