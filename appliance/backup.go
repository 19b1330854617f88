package appliance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
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

// BackUp is how a backup of the keys is asked for.
type BackUp struct {
	Partial bool          // though some keys have no sealed copy
	Dry     bool          // tell what it would cover, and make none
	Life    time.Duration // that others may countersign, 0: [change.DefaultLife]
}

// BackUpKeys makes a backup of all keys, with the trust settings and the policy, or asks
// for it where that takes a quorum: the error is a [*Waiting] then, and once it was
// countersigned the same is given for an hour. Keys without a sealed copy are
// [ErrUncovered], unless Partial says that this is known.
func (a *Appliance) BackUpKeys(ctx context.Context, ask BackUp) (b KeyBackup, err error) {
	// Nobody is asked for what cannot be; and no step of a key is kept waiting for it.
	if _, _, err := a.coverage(ctx, ask); err != nil {
		return b, err
	}
	if !ask.Dry {
		if err := a.mayBackUp(ctx, ask); err != nil {
			return b, err
		}
	}
	a.keySteps.Lock()
	defer a.keySteps.Unlock()
	state, covered, err := a.coverage(ctx, ask)
	if err != nil {
		return b, err
	}
	b.Coverage = covered
	point, err := a.point(ctx)
	if err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	b.Document = backup.NewDocument(state, point, a.now())
	if ask.Dry {
		return b, nil
	}
	if b.File, err = backup.Write(ctx, a.keys, b.Document, a.now()); err != nil {
		return b, err
	}
	b.SHA256 = sha256.Sum256(b.File)
	rec := a.record(audit.KindKeys, "backup", map[string]any{
		"event": "backed up", "sha256": b.SHA256[:], "keys": len(b.Items), "missing": append([]string{}, backup.Labels(b.Missing)...),
	})
	if err := a.store.Append(ctx, rec); err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	return b, nil
}

// coverage is what the registry has, and which of its keys a backup would hold.
func (a *Appliance) coverage(ctx context.Context, ask BackUp) (state backup.State, c backup.Coverage, err error) {
	if state, err = backup.StateOf(ctx, a.store); err != nil {
		return state, c, fmt.Errorf("backing up keys: %w", err)
	}
	if c, err = backup.Cover(state.Keys); err != nil {
		return state, c, fmt.Errorf("backing up keys: %w", err)
	}
	if len(c.Missing) > 0 && !ask.Partial {
		err = fmt.Errorf("%w: %v", ErrUncovered, backup.Labels(c.Missing))
	}
	return state, c, err
}

// grantPeriod is for how long what was countersigned may be fetched.
const grantPeriod = time.Hour

// mayBackUp is nil once enough administrators have countersigned this backup.
func (a *Appliance) mayBackUp(ctx context.Context, b BackUp) error {
	ask := Ask{Kind: policy.KeyBackup, Parameters: change.Parameters{"partial": b.Partial}, Life: b.Life}
	granted, err := a.granted(ctx, ask)
	if err != nil || granted {
		return err
	}
	c, err := a.Ask(ctx, ask)
	if err == nil {
		_, err = c.done()
	}
	return err
}

// granted looks for a request for the same, about the same state and so by the same
// policy, that was executed lately, and judges it again.
func (a *Appliance) granted(ctx context.Context, ask Ask) (bool, error) {
	base, err := a.base(ctx, ask.Kind, ask.Parameters)
	if err != nil {
		return false, err
	}
	all, err := a.store.ListChanges(ctx, changesShown)
	if err != nil {
		return false, err
	}
	for _, row := range all {
		r, err := change.Parse(row.Document)
		if err != nil || r.Kind != ask.Kind || r.Base != base || row.State != store.ChangeExecuted || !a.isFresh(row, r) {
			continue
		}
		err = a.askedFor(ctx, behind{
			what: ask.Kind.String(), change: row.ID, kind: ask.Kind,
			fits: func(p change.Parameters) bool { return p.Truth("partial") == ask.Parameters.Truth("partial") },
		})
		if !errors.Is(err, ErrForged) {
			return err == nil, err
		}
	}
	return false, nil
}

// isFresh: it was executed lately. Whatever its row says, that was not after it expired.
func (a *Appliance) isFresh(row store.Change, r change.Request) bool {
	ended := row.EndedAt
	if last := time.Unix(int64(r.Expires), 0); ended.After(last) {
		ended = last
	}
	return a.now().Before(ended.Add(grantPeriod))
}

// backupBase is which keys a backup would hold, and whether it may lack some.
func (a *Appliance) backupBase(_ context.Context, p change.Parameters) (any, error) {
	state := []any{p.Truth("partial")}
	for _, k := range a.keys.Ring().Keys() {
		state = append(state, []any{k.Name, k.Version, k.ID[:]})
	}
	return state, nil
}

// allowBackup does nothing: who asked fetches the backup.
func (a *Appliance) allowBackup(context.Context, Change) (any, error) { return nil, nil }

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

// CopyStore copies the database while it serves. No step of a key is made meanwhile, for
// the roots in the copy have to be those that sign it. Errors are those of
// [store.Recovery] and of the token.
func (a *Appliance) CopyStore(ctx context.Context) (c StoreCopy, err error) {
	a.keySteps.Lock()
	defer a.keySteps.Unlock()
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
	return a.store.Append(ctx, a.record(audit.KindStore, "backup", map[string]any{
		"event": "copied", "sha256": c.SHA256[:], "sequence": c.Point.Sequence,
	}))
}
