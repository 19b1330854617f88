package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"

	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
)

// merge checks that database and backup belong together, and merges them.
func (r *restoration) merge(ctx context.Context) error {
	claims, records, err := r.claims(ctx)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.DatabaseFile, err)
	}
	if err := r.sameHistory(ctx, records); err != nil {
		return err
	}
	database, err := backup.Claimed(claims)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.DatabaseFile, err)
	}
	if r.Unsigned {
		r.Merged, err = r.Backup.Alone(database, r.now)
	} else {
		r.Merged, err = r.Backup.Join(r.Statement, database)
	}
	if err != nil {
		return err
	}
	if r.Ended, err = backup.Ended(ctx, records, r.Point); err != nil {
		return fmt.Errorf("reading %s: %w", r.DatabaseFile, err)
	}
	if had, has := r.Anchor.Floor().MAC, keyring.NewestMAC(r.Merged.Keys); has < had {
		return fmt.Errorf("this host had mac@%d in force, and the files have mac@%d at most: %w", had, has, ErrOldMAC)
	}
	if lost := r.Lost(); len(lost) > 0 && !r.Partial {
		return fmt.Errorf("%w: %v", ErrLost, backup.Labels(lost))
	}
	return nil
}

// claims returns what the database claims: only its statement, if any, vouches for it.
func (r *restoration) claims(ctx context.Context) (store.Claims, backup.Records, error) {
	if r.old != nil {
		contents, err := r.old.Read()
		return contents.Claims, r.old, err
	}
	c, err := r.store.Claims(ctx)
	return c, r.store, err
}

// sameHistory looks up the record at which the backup was made, in a newer database.
func (r *restoration) sameHistory(ctx context.Context, s backup.Records) error {
	point := r.Backup.Point
	if point.Sequence == 0 || point.Sequence > r.Point.Sequence {
		return nil
	}
	records, err := s.Records(ctx, point.Sequence-1, 1)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.DatabaseFile, err)
	}
	if len(records) != 1 || records[0].Leaf() != point.Leaf {
		return fmt.Errorf("audit record %d of the database differs from the one in the backup: %w", point.Sequence, backup.ErrOther)
	}
	return nil
}

// recover records the restore in the database.
func (r *restoration) recover(ctx context.Context) error {
	var shares []int
	for _, s := range r.shares {
		shares = append(shares, s.Number)
	}
	rec := audit.Act(ctx, audit.KindStore, "restore", map[string]any{
		"event": "restored", "backup_sha256": r.Backup.SHA256[:], "backup_at": r.Backup.At, "keys": len(r.Items),
		"missing": append([]string{}, r.MissingLabels()...), "sequence": r.Point.Sequence, "shares": shares,
		"signed": !r.Unsigned, "root": r.Known.Root[:], "decision_epoch": r.Backup.By.Epoch,
	})
	recovered := r.Recovered(r.Label, r.now)
	recovered.Revision = r.Anchor.Floor().Revision
	if err := r.store.Recover(ctx, recovered, rec); err != nil {
		return fmt.Errorf("recording the restore: %w", err)
	}
	return r.took(ctx)
}

// testKeys tests every restored key.
func (r *restoration) testKeys(ctx context.Context) error {
	pins := keyuse.Pins{Anchor: anchor.InMemory(r.Anchor.Current()), Root: r.Known.Root}
	keys, err := keyuse.Load(ctx, r.token, r.store, pins)
	if err != nil {
		return err
	}
	if err := keylife.SelfTest(ctx, keys, r.now); err != nil {
		return err
	}
	for _, name := range keyring.Needed {
		if _, err := keys.Current(name, r.now); err != nil {
			return err
		}
	}
	return keylife.StoreAuthorities(ctx, keys)
}

// unseal verifies schema and seals of the database under the mac keys that are on the
// token now. It first seals a database of a release before the seals, whose statement
// vouches for it.
func (r *restoration) unseal(ctx context.Context) error {
	if r.old != nil {
		if err := r.sealOld(ctx); err != nil {
			return err
		}
	}
	// In an older copy, revision and mac may be behind those in the anchor.
	at := r.Anchor.Current()
	at.Revision, at.MAC, at.Head = 0, 0, [32]byte{}
	pins := keyuse.Pins{Anchor: anchor.InMemory(at), Root: r.Known.Root}
	err := keyuse.Unseal(ctx, r.token, r.store, r.Seals, pins)
	if err == nil {
		err = keyuse.SealKeys(ctx, r.token, r.Merged.Keys, r.Seals) // those that only the backup has
	}
	if err != nil && r.Unsigned && !errors.Is(err, hsm.ErrUnavailable) {
		err = r.salvage(ctx, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.DatabaseFile, err)
	}
	return nil
}

// salvage creates a new database with the trust of the backup and the records of this
// database whose seals verify.
func (r *restoration) salvage(ctx context.Context, cause error) error {
	if err := r.store.Close(); err != nil {
		return err
	}
	r.store = nil
	r.Seals = store.NewSeals(nil) // those so far came from a database that is not trusted
	if err := keyuse.SealKeys(ctx, r.token, r.Merged.Keys, r.Seals); err != nil {
		return err
	}
	trust := store.Trust{Keys: r.Merged.Keys, Settings: r.Settings.Values(), Policy: r.Policy}
	rec := audit.Act(ctx, audit.KindStore, "restore", map[string]any{"event": "salvaged", "because": cause.Error()})
	left, err := sqlite.Salvage(ctx, r.work, r.work+salvagedSuffix, r.Seals, trust, rec)
	if err != nil {
		return err
	}
	if err := os.Rename(r.work+salvagedSuffix, r.work); err != nil {
		return failed("replacing the database by the salvaged one", err)
	}
	r.MarkFounded()
	r.Salvaged, r.Forged = cause, left
	if err := r.openSealed(ctx); err != nil {
		return err
	}
	return r.store.Unseal(ctx, r.Seals, nil)
}

// verify verifies every record in force. An unsigned database loses records that do not
// match their seals; in a signed one they are an error.
func (r *restoration) verify(ctx context.Context) error {
	_, forged, err := r.store.Verify(ctx)
	if err != nil {
		return err
	}
	if r.Forged = append(r.Forged, forged...); len(forged) > 0 && !r.Unsigned {
		return fmt.Errorf("%s: %w", r.DatabaseFile, errors.Join(forged...))
	}
	return nil
}

// moveAnchor writes the anchor, as the last step: root, revision and mac as restored.
func (r *restoration) moveAnchor(ctx context.Context) error {
	claims, err := r.store.Claims(ctx)
	if err != nil {
		return err
	}
	pins := keyuse.Pins{Anchor: r.Anchor, Root: r.Known.Root}
	if r.Host.Root != (protocol.PublicKey{}) {
		pins.Root = r.Host.Root // serve requires that one
	}
	if err := pins.Verify(claims); err != nil {
		return err
	}
	r.Newest = r.Anchor.Current().Key
	return r.store.Unseal(ctx, r.Seals, r.Anchor)
}

// sealOld seals a database of a release before the seals, with all clients and
// administrators.
func (r *restoration) sealOld(ctx context.Context) error {
	if err := keyuse.SealKeys(ctx, r.token, r.Merged.Keys, r.Seals); err != nil {
		return err
	}
	contents, err := r.old.Read()
	if err != nil {
		return err
	}
	rules, err := policy.ParseStored(contents.Policy.Document)
	if err != nil {
		return fmt.Errorf("policy of %s: %w", r.DatabaseFile, err)
	}
	settings := r.Settings
	settings.HandleEpoch = keyring.NewHandleEpoch()
	sealing := sqlite.Sealing{
		Seals: r.Seals, Settings: settings.Values(), Clients: map[protocol.ClientID]bool{}, Admins: map[[8]byte]bool{}, Now: r.now,
		Currency: func(s protocol.Service) string { return rules.Currency(s) },
		Record:   audit.Act(ctx, audit.KindStore, "restore", map[string]any{"event": "sealed", "sequence": r.Point.Sequence}),
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
	r.old = nil
	return r.openSealed(ctx)
}

// took returns an error unless the merged trust and policy are in force in the database.
func (r *restoration) took(ctx context.Context) error {
	claims, err := r.store.Claims(ctx)
	if err != nil {
		return fmt.Errorf("reading the database again: %w", err)
	}
	now, err := backup.Claimed(claims)
	if err != nil {
		return fmt.Errorf("reading the database again: %w", err)
	}
	want := r.Settings
	want.HandleEpoch = now.Settings.HandleEpoch // a new one
	same := reflect.DeepEqual(now.Settings, want) && now.Policy.Version == r.Policy.Version
	if !same || !bytes.Equal(now.Policy.Document, r.Policy.Document) {
		return fmt.Errorf("%s does not keep the trust or the policy that it is given: %w", r.DatabaseFile, backup.ErrFile)
	}
	return nil
}
