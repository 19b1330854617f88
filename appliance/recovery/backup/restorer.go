package backup

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/recovery/custody"
	"countersign/hsm"
)

var (
	// ErrTokenUsed means that the token has keys that this restore would not put there.
	ErrTokenUsed = errors.New("the token is not empty")
	// ErrShares means that shares are missing for a backup key that copies are sealed
	// for, or were given for another key.
	ErrShares = errors.New("shares of another backup key")
	// ErrCopy means that a sealed copy does not open to its key.
	ErrCopy = errors.New("a sealed copy does not open")
)

// adoptedLabel is the label of the backup key while it is on the token.
const adoptedLabel = "recovery@1"

// NewMarker returns the marker of a new restore.
func NewMarker() string { return "restoring-" + rand.Text() }

// undoTime is the timeout for undoing a restore.
const undoTime = 60 * time.Second

// Restorer puts keys onto a token.
type Restorer struct {
	Token hsm.Token
	Items []Item
	Keys  []*ecdh.PrivateKey // the backup keys of the items, and no others
	// Marker is the label of a key that is on the token during the whole restore. It is
	// random, so that no other token has it.
	Marker string
}

// Check compares the backup keys with the items. An error wraps [ErrShares].
func (r Restorer) Check() error {
	wanted := Coverage{Items: r.Items}.Recipients()
	for _, k := range r.Keys {
		if p := custody.PointOf(k.PublicKey()); !slices.Contains(wanted, p) {
			return fmt.Errorf("backup key %s opens none of these copies: %w", p, ErrShares)
		}
	}
	for _, p := range wanted {
		if !slices.ContainsFunc(r.Keys, func(k *ecdh.PrivateKey) bool { return custody.PointOf(k.PublicKey()) == p }) {
			return fmt.Errorf("copies are sealed for backup key %s, and its shares are missing: %w", p, ErrShares)
		}
	}
	return nil
}

// Sweep removes the keys of an interrupted restore from the token. The marker identifies
// them: the token of the lost appliance has the same keys and no marker. If the token has
// other keys, the error is [ErrTokenUsed].
func (r Restorer) Sweep(ctx context.Context) error {
	there, err := r.Token.Keys(ctx)
	if err != nil {
		return fmt.Errorf("looking at the token: %w", err)
	}
	there = slices.DeleteFunc(there, func(k hsm.Key) bool { return !k.Versioned() && k.Label != r.Marker }) // another program's
	marked := slices.ContainsFunc(there, func(k hsm.Key) bool { return k.Label == r.Marker })
	for _, k := range there {
		if !marked || !r.ours(k) {
			return fmt.Errorf("%d keys, %s among them: %w", len(there), k.Label, ErrTokenUsed)
		}
	}
	if !marked {
		return nil
	}
	if err := r.Undo(ctx); err != nil {
		return fmt.Errorf("removing what an interrupted restore left: %w", err)
	}
	return nil
}

func (r Restorer) ours(k hsm.Key) bool {
	return k.Label == adoptedLabel || k.Label == r.Marker ||
		slices.ContainsFunc(r.Items, func(i Item) bool { return i.ID == k.ID && i.Spec.Label == k.Label })
}

// Run puts all keys onto the token, or none; the marker comes first. The backup keys are on
// the token meanwhile and removed before Run returns, also after an error. An error wraps
// [ErrCopy] or [ErrTokenUsed], or is the token's.
func (r Restorer) Run(ctx context.Context) error {
	if err := r.run(ctx); err != nil {
		return errors.Join(err, r.Undo(ctx))
	}
	return nil
}

func (r Restorer) run(ctx context.Context) error {
	_, err := r.Token.Generate(ctx, hsm.KeySpec{Label: r.Marker, Usage: hsm.MACKey})
	if err != nil && !errors.Is(err, hsm.ErrExists) {
		return fmt.Errorf("marking the token: %w", err)
	}
	for _, private := range r.Keys {
		err := r.with(ctx, private)
		if err = errors.Join(named(err), r.forget(ctx, private)); err != nil {
			return err
		}
	}
	return nil
}

// Done removes the marker from the token.
func (r Restorer) Done(ctx context.Context) error {
	there, err := r.Token.Keys(ctx)
	for _, k := range there {
		if k.Label == r.Marker && err == nil {
			err = r.Token.Destroy(ctx, k.ID)
		}
	}
	if err != nil {
		return fmt.Errorf("removing the marker from the token: %w", err)
	}
	return nil
}

// with restores all keys that one backup key opens.
func (r Restorer) with(ctx context.Context, private *ecdh.PrivateKey) error {
	id, err := idOf(private.PublicKey())
	if err != nil {
		return err
	}
	_, err = r.Token.Adopt(ctx, hsm.KeySpec{Label: adoptedLabel, Usage: hsm.DeriveP256}, private)
	if err := r.unlessThere(ctx, hsm.Key{ID: id, Label: adoptedLabel, Usage: hsm.DeriveP256}, err); err != nil {
		return err
	}
	for _, i := range r.Items {
		if i.For != custody.PointOf(private.PublicKey()) {
			continue
		}
		i.With = id
		_, err := r.Token.Restore(ctx, i.Restore)
		if err := r.unlessThere(ctx, hsm.Key{ID: i.ID, Label: i.Spec.Label, Usage: i.Spec.Usage}, err); err != nil {
			return fmt.Errorf("restoring %s: %w", i.Spec.Label, err)
		}
	}
	return nil
}

// unlessThere accepts that a key exists already: after a worker was lost, its call was
// repeated although it had succeeded. Before this restore the token had no keys.
func (r Restorer) unlessThere(ctx context.Context, want hsm.Key, err error) error {
	if !errors.Is(err, hsm.ErrExists) {
		return err
	}
	there, listErr := r.Token.Keys(ctx)
	same := func(k hsm.Key) bool { return k.ID == want.ID && k.Label == want.Label && k.Usage == want.Usage }
	if listErr == nil && slices.ContainsFunc(there, same) {
		return nil
	}
	return err
}

// idOf returns the CKA_ID of a key pair.
func idOf(public *ecdh.PublicKey) (id hsm.KeyID, err error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return id, fmt.Errorf("backup key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hsm.KeyID(sum[:len(id)]), nil
}

// named converts errors of the token. A label may be taken by an object that the token
// does not list as a key, and that this restore did not make.
func named(err error) error {
	switch {
	case errors.Is(err, hsm.ErrInput):
		return fmt.Errorf("%w: %w", ErrCopy, err)
	case errors.Is(err, hsm.ErrExists):
		return fmt.Errorf("%w: %w", ErrTokenUsed, err)
	}
	return err
}

// forget destroys a backup key on the token. A missing key is no error.
func (r Restorer) forget(ctx context.Context, private *ecdh.PrivateKey) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	id, err := idOf(private.PublicKey())
	if err == nil {
		err = r.Token.Destroy(ctx, id)
	}
	if err != nil && !errors.Is(err, hsm.ErrKey) {
		return fmt.Errorf("the backup key may still be on the token: restore onto another, empty token: %w", err)
	}
	return nil
}

// Undo removes everything that Run put onto the token, the marker last. It goes by id,
// because half of a key pair is not listed as a key.
func (r Restorer) Undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var failed error
	for _, private := range r.Keys {
		failed = errors.Join(failed, r.forget(ctx, private))
	}
	for _, i := range r.Items {
		if err := r.Token.Destroy(ctx, i.ID); err != nil && !errors.Is(err, hsm.ErrKey) {
			failed = errors.Join(failed, err)
		}
	}
	if failed == nil {
		failed = r.Done(ctx)
	}
	if failed != nil {
		return fmt.Errorf("undoing the restore; restore onto another, empty token: %w", failed)
	}
	return nil
}
