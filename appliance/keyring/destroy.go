package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/hsm"
)

// Erase removes from the token what a destroy step gave up. It comes after the row is
// stored, so that nothing uses a key that may be gone; a key that is gone already is no
// error, so that an interrupted step can be repeated. Errors are those of the token.
func (r *Keyring) Erase(ctx context.Context, p Plan) error {
	if p.Verb != Destroy {
		return nil
	}
	for _, e := range p.Edits {
		if r.shared(e) {
			continue
		}
		if err := r.token.Destroy(ctx, e.ID); err != nil && !errors.Is(err, hsm.ErrKey) {
			return fmt.Errorf("destroying %s: %w", Label(e.Name, e.Version), err)
		}
	}
	return nil
}

// shared tells whether another version has the same key pair and is not destroyed.
func (r *Keyring) shared(e Edit) bool {
	return slices.ContainsFunc(r.Keys(), func(k Key) bool {
		return k.ID == e.ID && (k.Name != e.Name || k.Version != e.Version) && k.DestroyedAt.IsZero()
	})
}
