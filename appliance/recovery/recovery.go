// Package recovery makes what a lost appliance is recovered from: backups of its keys and
// copies of its database.
package recovery

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/internal/bounded"
	"countersign/policy"
)

// Service makes backups. It is safe for concurrent use.
type Service struct {
	store    store.Store
	keyring  *keyuse.Keys
	keys     *keylife.Service
	requests *requests.Service
	now      func() time.Time
	made     bounded.Map[[32]byte, string] // kinds of audit record, by SHA-256 of a backup that Keep may record
}

// Config holds what a Service needs.
type Config struct {
	Store    store.Store
	Keyring  *keyuse.Keys
	Keys     *keylife.Service
	Requests *requests.Service
	Now      func() time.Time
}

// New returns a service and registers the effects of [policy.KeyBackup] and [policy.StoreBackup].
func New(c Config) *Service {
	s := &Service{store: c.Store, keyring: c.Keyring, keys: c.Keys, requests: c.Requests, now: c.Now}
	s.made.Max = mostMade
	c.Requests.Register(policy.KeyBackup, requests.Effect{Base: s.base, Grants: true})
	c.Requests.Register(policy.StoreBackup, requests.Effect{Base: s.copyBase, Grants: true})
	return s
}

// ErrUncovered: keys have no sealed copy, so that a backup would not bring them back.
var ErrUncovered = errors.New("keys without a sealed copy")

// KeyBackup is a backup of the keys.
type KeyBackup struct {
	File []byte // in the format of package backup
	backup.Document
	backup.Coverage
	SHA256 [32]byte // of the file
}

// BackUp is a request for a backup of the keys.
type BackUp struct {
	Partial bool          // even if some keys have no sealed copy
	Dry     bool          // return the coverage and make no backup
	Life    time.Duration // time for countersigning, 0: [change.DefaultLife]
}

// BackUpKeys makes a backup of all keys, with the trust settings and the policy, and calls send with
// it. If administrators have to countersign first, it makes the request and returns a
// [*requests.Waiting]. For an hour after the last signature one backup can be sent. If the backup is
// not made, or send returns an error, the request can be used again. Keys without a sealed copy are
// [ErrUncovered], unless Partial is set.
func (s *Service) BackUpKeys(ctx context.Context, ask BackUp, send func(KeyBackup) error) error {
	// Administrators are not asked for an impossible backup. This check does not pause the steps of keys.
	if _, _, err := s.coverage(ctx, ask); err != nil {
		return err
	}
	backUp := func(ctx context.Context, _ change.ID) error {
		b, err := s.backUpKeys(ctx, ask)
		if err != nil {
			return err
		}
		return s.sent(ctx, b.SHA256, send(b))
	}
	if ask.Dry {
		return backUp(ctx, change.ID{})
	}
	d := change.Draft{Kind: policy.KeyBackup, Parameters: change.Parameters{"partial": ask.Partial}, Life: ask.Life}
	return s.requests.Use(ctx, d, backUp)
}

func (s *Service) backUpKeys(ctx context.Context, ask BackUp) (b KeyBackup, err error) {
	defer s.keys.Pause()()
	state, covered, err := s.coverage(ctx, ask)
	if err != nil {
		return b, err
	}
	b.Coverage = covered
	point, err := s.point(ctx)
	if err != nil {
		return b, fmt.Errorf("backing up keys: %w", err)
	}
	b.Document = backup.NewDocument(state, point, s.now())
	if ask.Dry {
		return b, nil
	}
	if b.File, err = backup.Write(ctx, s.keyring, b.Document, s.now()); err != nil {
		return b, err
	}
	b.SHA256 = sha256.Sum256(b.File)
	return b, s.record(ctx, audit.KindKeys, b.SHA256, map[string]any{
		"keys": len(b.Items), "missing": append([]string{}, backup.Labels(b.Missing)...),
	})
}

// coverage returns the rows of the registry, and which of their keys a backup would hold.
func (s *Service) coverage(ctx context.Context, ask BackUp) (state backup.State, c backup.Coverage, err error) {
	if state, err = backup.StateOf(ctx, s.store); err != nil {
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

// base returns which keys a backup would hold, and whether it may lack some.
func (s *Service) base(_ context.Context, p change.Parameters) (any, error) {
	state := []any{p.Truth("partial")}
	for _, k := range s.keyring.Ring().Keys() {
		state = append(state, []any{k.Name, k.Version, k.ID[:]})
	}
	return state, nil
}

// point returns the store's newest audit record.
func (s *Service) point(ctx context.Context) (p backup.Point, err error) {
	records, err := s.store.LastRecords(ctx, 1)
	if err != nil || len(records) == 0 {
		return p, err
	}
	return backup.PointOf(store.Point{Sequence: records[0].Sequence, At: records[0].At, Leaf: records[0].Leaf()}), nil
}

// StoreCopy is a copy of the database with the statement that vouches for it.
type StoreCopy struct {
	store.Copy
	SHA256    [32]byte
	Statement []byte // in the format of package backup
}

// DraftCopy drafts the request for a copy of the database.
func DraftCopy(life time.Duration) change.Draft {
	return change.Draft{Kind: policy.StoreBackup, Parameters: change.Parameters{}, Life: life}
}

// copyBase returns no state: a copy has what is in the database when it is made.
func (s *Service) copyBase(context.Context, change.Parameters) (any, error) { return nil, nil }

// CopyStore copies the database while the appliance serves, and calls send with the copy, which it
// closes afterwards. It needs a request as BackUpKeys does. The roots in the
// copy have to be the ones that sign it: if a key changes meanwhile, it is made again. It also returns the
// errors of [store.Recovery] and of the token.
func (s *Service) CopyStore(ctx context.Context, life time.Duration, send func(StoreCopy) error) error {
	return s.requests.Use(ctx, DraftCopy(life), func(ctx context.Context, _ change.ID) error {
		c, err := s.copyStore(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }() // it was only read
		return s.sent(ctx, c.SHA256, send(c))
	})
}

// copyStore makes the copy while keys may change, and begins anew if they did: their steps, which may be an
// emergency, do not wait for the copy.
func (s *Service) copyStore(ctx context.Context) (c StoreCopy, err error) {
	for vouched := false; !vouched && err == nil; {
		before := s.keyring.Ring()
		if c.Copy, err = s.store.Copy(ctx); err != nil {
			return c, err
		}
		if vouched, err = s.vouch(ctx, &c, before); !vouched {
			_ = c.Close() // an error of vouch counts
		}
	}
	return c, err
}

// vouch signs a copy. It returns false if the keys are others than before the copy was made.
func (s *Service) vouch(ctx context.Context, c *StoreCopy, before *keyring.Ring) (same bool, err error) {
	sum := sha256.New()
	if _, err = io.Copy(sum, c); err == nil {
		_, err = c.Seek(0, io.SeekStart)
	}
	if err != nil {
		return false, fmt.Errorf("reading the copy of the store: %w: %w", err, store.ErrUnavailable)
	}
	c.SHA256 = [32]byte(sum.Sum(nil))
	defer s.keys.Pause()()
	if s.keyring.Ring() != before {
		return false, nil
	}
	statement := backup.Copy{SHA256: c.SHA256, Size: uint64(c.Size), Point: backup.PointOf(c.Point)}
	if c.Statement, err = backup.Vouch(ctx, s.keyring, statement, s.now()); err != nil {
		return false, err
	}
	err = s.record(ctx, audit.KindStore, c.SHA256, map[string]any{"sequence": c.Point.Sequence})
	return err == nil, err
}
