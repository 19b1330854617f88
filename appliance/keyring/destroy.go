package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/hsm"
)

// Destroyer is a token whose keys can be destroyed: C_DestroyObject of both halves. A
// key that is not there is [hsm.ErrKey].
type Destroyer interface {
	Destroy(ctx context.Context, key hsm.KeyID) error
}

// ErrNoDestroy: the token's driver cannot destroy a key.
var ErrNoDestroy = errors.New("the token's driver cannot destroy a key")

// Erase removes from the token what a destroy step gave up. It comes after the row is
// stored, so that nothing uses a key that may be gone; a key that is gone already is no
// error, so that an interrupted step can be repeated. Errors are [ErrNoDestroy] and
// those of the token.
func (r *Keyring) Erase(ctx context.Context, p Plan) error {
	if p.Verb != Destroy {
		return nil
	}
	for _, e := range p.Edits {
		if r.shared(e) {
			continue
		}
		token, ok := r.token.(Destroyer)
		if !ok {
			return ErrNoDestroy
		}
		if err := token.Destroy(ctx, e.ID); err != nil && !errors.Is(err, hsm.ErrKey) {
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
