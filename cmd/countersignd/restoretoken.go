package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"

	"countersign/appliance/anchor"
	"countersign/appliance/backup"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/protocol"
)

// restore does the work on the token and the database; after an error both are as if
// it had not begun, or the mark stays.
func (r *restoration) restore(ctx context.Context, p *parts) (err error) {
	if p.locked() {
		return p.tokenError()
	}
	if err := r.merge(ctx, p); err != nil {
		return err
	}
	restorer := backup.Restorer{Token: p.token, Items: r.merged.Items, Keys: r.keys}
	if restorer.Marker, err = markerOf(r.cfg); err != nil {
		return err
	}
	if err := restorer.Check(); err != nil {
		return err
	}
	if err := restorer.Sweep(ctx); err != nil {
		return err
	}
	if err := r.mark(restorer.Marker); err != nil {
		return err
	}
	if err := r.onto(ctx, p, restorer); err != nil {
		return errors.Join(err, r.unmark(ctx, p))
	}
	return nil
}

// onto is all that changes the token.
func (r *restoration) onto(ctx context.Context, p *parts, restorer backup.Restorer) error {
	if err := restorer.Run(ctx); err != nil {
		return err
	}
	if err := r.finish(ctx, p); err != nil {
		return errors.Join(err, restorer.Undo(ctx))
	}
	return nil
}

// merge holds database and backup together.
func (r *restoration) merge(ctx context.Context, p *parts) error {
	if err := r.sameHistory(ctx, p.store); err != nil {
		return err
	}
	database, err := backup.StateOf(ctx, p.store)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	if r.flags.unsigned {
		r.merged, err = r.backup.Alone(database, r.now)
	} else {
		r.merged, err = r.backup.Join(r.vouch, database)
	}
	if err != nil {
		return err
	}
	if r.ended, err = backup.Ended(ctx, p.store, r.point); err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	if lost := r.merged.Lost(); len(lost) > 0 && !r.flags.partial {
		return fmt.Errorf("%w: %v", errLost, backup.Labels(lost))
	}
	return nil
}

// sameHistory finds the record at which the backup was made, in a database that is
// newer.
func (r *restoration) sameHistory(ctx context.Context, s store.Audit) error {
	at := r.backup.Point.Sequence
	if at == 0 || at > r.point.Sequence {
		return nil
	}
	records, err := s.Records(ctx, at-1, 1)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	if len(records) != 1 || records[0].Leaf() != r.backup.Point.Leaf {
		return fmt.Errorf("audit record %d of the database is not the one that the backup knows: %w", at, backup.ErrOther)
	}
	return nil
}

// finish makes the database say what happened, and has every key show that it is the
// one it is said to be.
func (r *restoration) finish(ctx context.Context, p *parts) error {
	rec := store.NewRecord(store.KindStore, "restore", map[string]any{
		"event": "restored", "backup_sha256": r.backup.SHA256[:], "backup_at": r.backup.At, "keys": len(r.merged.Items),
		"missing": append([]string{}, r.merged.MissingLabels()...), "sequence": r.point.Sequence, "shares": r.shareNumbers(), "signed": !r.flags.unsigned,
		"root": r.root[:], "decision_epoch": r.backup.By.Epoch,
	})
	if err := p.store.Recover(ctx, r.merged.Recovered(r.cfg.HSM.TokenLabel, r.now), rec); err != nil {
		return fmt.Errorf("recording the restore: %w", err)
	}
	if err := r.took(ctx, p.store); err != nil {
		return err
	}
	keys, err := keyring.Load(ctx, p.token, p.store, keyring.Pins{Anchor: anchor.InMemory(p.anchor.Current()), Root: r.root})
	if err != nil {
		return err
	}
	if err := keys.SelfTest(ctx, r.now); err != nil {
		return err
	}
	for _, name := range keyring.Needed {
		if _, err := keys.Current(name, r.now); err != nil {
			return err
		}
	}
	if err := keys.StoreAuthorities(ctx); err != nil {
		return err
	}
	pins := keyring.Pins{Anchor: p.anchor, Root: r.root}
	if p.root != (protocol.PublicKey{}) {
		pins.Root = p.root // serve will want that one
	}
	err = keyring.Verify(ctx, p.store, pins) // which writes the anchor, last
	r.newest = p.anchor.Current().Key
	return err
}

// took finds that the trust and the policy in force are those that were merged, whatever
// else the database has.
func (r *restoration) took(ctx context.Context, s backup.Source) error {
	now, err := backup.StateOf(ctx, s)
	if err != nil {
		return fmt.Errorf("reading the database again: %w", err)
	}
	want := r.merged.State
	want.Settings.HandleEpoch = now.Settings.HandleEpoch // a new one
	if !reflect.DeepEqual(now.Settings, want.Settings) || now.Policy.Version != want.Policy.Version || !bytes.Equal(now.Policy.Document, want.Policy.Document) {
		return fmt.Errorf("%s does not keep the trust or the policy that it is given: %w", r.flags.database, backup.ErrFile)
	}
	return nil
}

func (r *restoration) shareNumbers() (all []int) {
	for _, s := range r.shares {
		all = append(all, s.Number)
	}
	return all
}
