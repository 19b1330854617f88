package backup

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/custody"
	"countersign/hsm"
)

// Sentinels of a restore.
var (
	// ErrTokenUsed: the token has keys that this restore would not put there.
	ErrTokenUsed = errors.New("the token is not empty")
	// ErrShares: no shares were given for a backup key that copies are sealed for, or
	// for one that none is.
	ErrShares = errors.New("shares of another backup key")
	// ErrCopy: a sealed copy does not open to its key.
	ErrCopy = errors.New("a sealed copy does not open")
)

// adoptedLabel is of the backup key while it is on the token.
const adoptedLabel = "recovery@1"

// undoTime bounds how long what was begun may take to be taken back, seconds.
const undoTime = 60 * time.Second

// Restorer puts keys onto a token.
type Restorer struct {
	Token hsm.Token
	Items []Item
	Keys  []*ecdh.PrivateKey // each backup key that an item is for, and no other
}

// Check holds the backup keys against the items; an error wraps [ErrShares].
func (r Restorer) Check() error {
	wanted := Coverage{Items: r.Items}.Recipients()
	for _, k := range r.Keys {
		if p := custody.PointOf(k.PublicKey()); !slices.Contains(wanted, p) {
			return fmt.Errorf("backup key %s opens none of these copies: %w", p, ErrShares)
		}
	}
	for _, p := range wanted {
		if !slices.ContainsFunc(r.Keys, func(k *ecdh.PrivateKey) bool { return custody.PointOf(k.PublicKey()) == p }) {
			return fmt.Errorf("copies are sealed for backup key %s, of which there are no shares: %w", p, ErrShares)
		}
	}
	return nil
}

// Sweep removes from the token what an interrupted restore of the same keys left, and
// refuses a token that has anything else: [ErrTokenUsed]. interrupted says that there
// was one; without it the token has to be empty.
func (r Restorer) Sweep(ctx context.Context, interrupted bool) error {
	there, err := r.Token.Keys(ctx)
	if err != nil {
		return fmt.Errorf("looking at the token: %w", err)
	}
	for _, k := range there {
		if !interrupted || !r.ours(k) {
			return fmt.Errorf("%d keys, %s among them: %w", len(there), k.Label, ErrTokenUsed)
		}
	}
	for _, k := range there {
		if err := r.Token.Destroy(ctx, k.ID); err != nil {
			return fmt.Errorf("removing what an interrupted restore left: %w", err)
		}
	}
	return nil
}

func (r Restorer) ours(k hsm.Key) bool {
	return k.Label == adoptedLabel || slices.ContainsFunc(r.Items, func(i Item) bool { return i.ID == k.ID && i.Spec.Label == k.Label })
}

// Run puts all keys onto the token, or none: the backup keys are there meanwhile, and
// gone when it returns, whatever comes. An error wraps [ErrCopy] or is the token's.
func (r Restorer) Run(ctx context.Context) error {
	err := r.run(ctx)
	if err != nil {
		return errors.Join(err, r.Undo(ctx))
	}
	return nil
}

func (r Restorer) run(ctx context.Context) (err error) {
	for _, private := range r.Keys {
		adopted, err := r.Token.Adopt(ctx, hsm.KeySpec{Label: adoptedLabel, Usage: hsm.DeriveP256}, private)
		if err == nil {
			err = r.restoreWith(ctx, adopted)
		}
		if gone := r.forget(ctx, private); err == nil {
			err = gone
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forget destroys a backup key on the token; that it was never there is good.
func (r Restorer) forget(ctx context.Context, private *ecdh.PrivateKey) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	there, err := r.Token.Keys(ctx)
	for _, k := range there {
		point, notPair := k.ECDH()
		if notPair == nil && point.Equal(private.PublicKey()) {
			err = errors.Join(err, r.Token.Destroy(ctx, k.ID))
		}
	}
	if err != nil {
		return fmt.Errorf("the backup key may be on the token still: initialize the token again: %w", err)
	}
	return nil
}

func (r Restorer) restoreWith(ctx context.Context, adopted hsm.Key) error {
	public, err := adopted.ECDH()
	if err != nil {
		return err
	}
	for _, i := range r.Items {
		if i.For != custody.PointOf(public) {
			continue
		}
		i.With = adopted.ID
		_, err := r.Token.Restore(ctx, i.Restore)
		if errors.Is(err, hsm.ErrInput) {
			err = fmt.Errorf("%w: %w", ErrCopy, err)
		}
		if err != nil {
			return fmt.Errorf("restoring %s: %w", i.Spec.Label, err)
		}
	}
	return nil
}

// Undo removes from the token what Run has put there.
func (r Restorer) Undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var failed error
	for _, i := range r.Items {
		if err := r.Token.Destroy(ctx, i.ID); err != nil && !errors.Is(err, hsm.ErrKey) {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return fmt.Errorf("taking the restore back, initialize the token again: %w", failed)
	}
	return nil
}
