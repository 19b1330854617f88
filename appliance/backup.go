package appliance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"countersign/appliance/backup"
	"countersign/appliance/store"
)

// ErrUncovered: keys have no sealed copy, so that a backup would bring back less than
// there is.
var ErrUncovered = errors.New("keys without a sealed copy")

// KeyBackup is a backup of the keys.
type KeyBackup struct {
	File []byte // package backup's
	backup.Document
	backup.Coverage
	SHA256 [32]byte // of the file
}

// BackUpKeys makes a backup of all keys, with the trust settings and the policy. Keys
// without a sealed copy are [ErrUncovered], unless partial says that this is known.
func (a *Appliance) BackUpKeys(ctx context.Context, partial bool) (b KeyBackup, err error) {
	if err := a.mayBackUp(ctx); err != nil {
		return b, err
	}
	a.keySteps.Lock()
	defer a.keySteps.Unlock()
	state, err := backup.StateOf(ctx, a.store)
	if err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	if b.Coverage, err = backup.Cover(state.Keys); err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	if len(b.Missing) > 0 && !partial {
		return b, fmt.Errorf("%w: %v", ErrUncovered, backup.Labels(b.Missing))
	}
	point, err := a.point(ctx)
	if err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	b.Document = backup.NewDocument(state, point, a.now())
	if b.File, err = backup.Write(ctx, a.keys, b.Document, a.now()); err != nil {
		return b, err
	}
	b.SHA256 = sha256.Sum256(b.File)
	rec := a.record(store.KindKeys, "backup", map[string]any{
		"event": "backed up", "sha256": b.SHA256[:], "keys": len(b.Items), "missing": append([]string{}, backup.Labels(b.Missing)...),
	})
	if err := a.store.Append(ctx, rec); err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	return b, nil
}

// mayBackUp is where a backup waits for its quorum: none is asked for yet. What it
// gives away is of use only to who has the shares too.
func (a *Appliance) mayBackUp(context.Context) error { return nil }

// point is the store's newest audit record.
func (a *Appliance) point(ctx context.Context) (p backup.Point, err error) {
	tally, err := a.store.Tally(ctx)
	if err != nil || tally.Records == 0 {
		return p, err
	}
	records, err := a.store.Records(ctx, tally.Records-1, 1)
	if err != nil || len(records) == 0 {
		return p, err
	}
	return backup.PointOf(store.Point{Sequence: records[0].Sequence, At: records[0].At, Leaf: records[0].Leaf()}), nil
}

// StoreCopy is a copy of the database with the statement that vouches for it.
type StoreCopy struct {
	store.Copy // the caller closes it
	SHA256     [32]byte
	Statement  []byte // package backup's
}

// CopyStore copies the database while it serves. Errors are those of [store.Recovery]
// and of the token.
func (a *Appliance) CopyStore(ctx context.Context) (c StoreCopy, err error) {
	if c.Copy, err = a.store.Copy(ctx); err != nil {
		return c, err
	}
	if err := a.vouch(ctx, &c); err != nil {
		_ = c.Close() // the first error counts
		return c, err
	}
	return c, nil
}

func (a *Appliance) vouch(ctx context.Context, c *StoreCopy) error {
	sum := sha256.New()
	_, err := io.Copy(sum, c)
	if err == nil {
		_, err = c.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("reading the copy of the store: %w: %w", err, store.ErrUnavailable)
	}
	c.SHA256 = [32]byte(sum.Sum(nil))
	statement := backup.Copy{SHA256: c.SHA256, Size: uint64(c.Size), Point: backup.PointOf(c.Point)}
	if c.Statement, err = backup.Vouch(ctx, a.keys, statement, a.now()); err != nil {
		return err
	}
	return a.store.Append(ctx, a.record(store.KindStore, "backup", map[string]any{
		"event": "copied", "sha256": c.SHA256[:], "sequence": c.Point.Sequence,
	}))
}
