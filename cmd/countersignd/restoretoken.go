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
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/internal/cli"
	"countersign/internal/durable"
	"countersign/policy"
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
	claims, records, err := r.claims(ctx, p)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	if err := r.sameHistory(ctx, records); err != nil {
		return err
	}
	database, err := backup.Claimed(claims)
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
	if r.ended, err = backup.Ended(ctx, records, r.point); err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	if had, has := p.anchor.Floor().MAC, keyring.NewestMAC(r.merged.Keys); has < had {
		return fmt.Errorf("this host had mac@%d in force, and the files know mac@%d at most: %w", had, has, errOldMAC)
	}
	if lost := r.merged.Lost(); len(lost) > 0 && !r.flags.partial {
		return fmt.Errorf("%w: %v", errLost, backup.Labels(lost))
	}
	return nil
}

// claims is what the database says, which its statement vouches for, or nothing.
func (r *restoration) claims(ctx context.Context, p *parts) (store.Claims, backup.Records, error) {
	if r.old != nil {
		contents, err := r.old.Read()
		return contents.Claims, r.old, err
	}
	c, err := p.store.Claims(ctx)
	return c, p.store, err
}

// sameHistory finds the record at which the backup was made, in a database that is
// newer.
func (r *restoration) sameHistory(ctx context.Context, s backup.Records) error {
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
	rec := audit.NewRecord(audit.KindStore, "restore", map[string]any{
		"event": "restored", "backup_sha256": r.backup.SHA256[:], "backup_at": r.backup.At, "keys": len(r.merged.Items),
		"missing": append([]string{}, r.merged.MissingLabels()...), "sequence": r.point.Sequence, "shares": r.shareNumbers(), "signed": !r.flags.unsigned,
		"root": r.root[:], "decision_epoch": r.backup.By.Epoch,
	})
	if err := r.unseal(ctx, p); err != nil {
		return err
	}
	recovered := r.merged.Recovered(r.cfg.HSM.TokenLabel, r.now)
	recovered.Revision = p.anchor.Floor().Revision
	if err := p.store.Recover(ctx, recovered, rec); err != nil {
		return fmt.Errorf("recording the restore: %w", err)
	}
	if err := r.took(ctx, p.store); err != nil {
		return err
	}
	if err := r.verify(ctx, p); err != nil {
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
	return r.moveAnchor(ctx, p)
}

// unseal verifies schema and seals of the database under the mac keys that are on the
// token now. A database of a release before the seals is sealed first, for its statement
// vouches for it.
func (r *restoration) unseal(ctx context.Context, p *parts) error {
	if r.old != nil {
		if err := r.sealOld(ctx, p); err != nil {
			return err
		}
	}
	// Of an older copy revision and mac may be behind those that the anchor knows.
	at := p.anchor.Current()
	at.Revision, at.MAC, at.Head = 0, 0, [32]byte{}
	pins := keyring.Pins{Anchor: anchor.InMemory(at), Root: r.root}
	err := keyring.Unseal(ctx, p.token, p.store, p.seals, pins)
	if err == nil {
		err = keyring.SealKeys(ctx, p.token, r.merged.Keys, p.seals) // those that only the backup knows
	}
	if err != nil && r.flags.unsigned && !errors.Is(err, hsm.ErrUnavailable) {
		err = r.salvage(ctx, p, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.flags.database, err)
	}
	return nil
}

// salvage makes a new database of the trust that the backup has, with the records of this
// one whose seals verify.
func (r *restoration) salvage(ctx context.Context, p *parts, cause error) error {
	if err := p.store.Close(); err != nil {
		return err
	}
	p.seals = store.NewSeals(nil) // what was learned from the database is not believed
	if err := keyring.SealKeys(ctx, p.token, r.merged.Keys, p.seals); err != nil {
		return err
	}
	trust := store.Trust{Keys: r.merged.Keys, Settings: r.merged.Settings.Values(), Policy: r.merged.Policy}
	rec := audit.NewRecord(audit.KindStore, "restore", map[string]any{"event": "salvaged", "because": cause.Error()})
	left, err := sqlite.Salvage(ctx, r.work, r.work+salvagedSuffix, p.seals, trust, rec)
	if err != nil {
		return err
	}
	if err := durable.Rename(r.work+salvagedSuffix, r.work); err != nil {
		return cli.Fail(cli.IO, err, "")
	}
	r.merged.MarkFounded()
	r.salvaged, r.forged = cause, left
	p.store, err = sqlite.Open(ctx, sqlite.Config{Path: r.work, Existing: true, Logger: p.log.Named("store")})
	if err != nil {
		return err
	}
	return p.store.Unseal(ctx, p.seals, nil)
}

// verify reads every record in force. In a database that nothing but its seals vouches
// for, what does not fit stays behind.
func (r *restoration) verify(ctx context.Context, p *parts) error {
	_, forged, err := p.store.Verify(ctx)
	if err != nil {
		return err
	}
	if r.forged = append(r.forged, forged...); len(forged) > 0 && !r.flags.unsigned {
		return fmt.Errorf("%s: %w", r.flags.database, errors.Join(forged...))
	}
	return nil
}

// moveAnchor writes the anchor, last: root, revision and mac of what was restored.
func (r *restoration) moveAnchor(ctx context.Context, p *parts) error {
	claims, err := p.store.Claims(ctx)
	if err != nil {
		return err
	}
	pins := keyring.Pins{Anchor: p.anchor, Root: r.root}
	if p.root != (protocol.PublicKey{}) {
		pins.Root = p.root // serve will want that one
	}
	if err := keyring.Verify(claims, pins); err != nil {
		return err
	}
	r.newest = p.anchor.Current().Key
	return p.store.Unseal(ctx, p.seals, p.anchor)
}

// sealOld seals a database of a release before the seals.
func (r *restoration) sealOld(ctx context.Context, p *parts) error {
	if err := keyring.SealKeys(ctx, p.token, r.merged.Keys, p.seals); err != nil {
		return err
	}
	contents, err := r.old.Read()
	if err != nil {
		return err
	}
	rules, err := policy.Parse(contents.Policy.Document)
	if err != nil {
		return fmt.Errorf("policy of %s: %w", r.flags.database, err)
	}
	settings := r.merged.Settings
	settings.HandleEpoch = keyring.NewHandleEpoch()
	sealing := sqlite.Sealing{
		Seals: p.seals, Settings: settings.Values(), Clients: map[protocol.ClientID]bool{}, Admins: map[[8]byte]bool{}, Now: r.now,
		Currency: func(s protocol.Service) string { return rules.Currency(uint64(s)) },
		Record:   audit.NewRecord(audit.KindStore, "restore", map[string]any{"event": "sealed", "sequence": r.point.Sequence}),
	}
	for _, c := range contents.Clients {
		sealing.Clients[c.ID] = true
	}
	for _, one := range contents.Admins {
		sealing.Admins[one.ID] = true
	}
	if err := r.old.Seal(ctx, sealing); err != nil {
		return err
	}
	if _, err := r.old.Put(); err != nil {
		return err
	}
	if err := r.old.Close(); err != nil {
		return err
	}
	p.store, err = sqlite.Open(ctx, sqlite.Config{Path: r.work, Existing: true, Logger: p.log.Named("store")})
	return err
}

// took finds that the trust and the policy in force are those that were merged, whatever
// else the database has.
func (r *restoration) took(ctx context.Context, s store.Sealing) error {
	claims, err := s.Claims(ctx)
	if err != nil {
		return fmt.Errorf("reading the database again: %w", err)
	}
	now, err := backup.Claimed(claims)
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
