package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"countersign/appliance/recovery/backup"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/internal/durable"
)

// restoring is the suffix of the database that a restore works on, and the name of the
// mark in the state directory. While the mark is there, the keys on the token are the
// restore's to remove.
const restoring = "restoring"

func (h Host) markPath() string { return filepath.Join(h.StateDir, restoring) }

func failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", doing, ErrFiles, err)
}

// CheckVacant returns [ErrStoreExists] if the host has a store.
func (h Host) CheckVacant(context.Context) error {
	for _, path := range []string{h.Store, h.Store + "-wal"} {
		if exists(path) {
			return fmt.Errorf("%s: %w", path, ErrStoreExists)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// alone locks other restores out of the state directory until the result is closed. It
// creates no file: a refused restore leaves an empty state directory at most.
func (h Host) alone() (turn io.Closer, err error) {
	turn, err = durable.LockDir(h.StateDir)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("%s: %w", h.StateDir, ErrRunning)
	}
	if err != nil {
		return nil, failed("locking the state directory", err)
	}
	if err := h.CheckVacant(context.Background()); err != nil { // another restore may just have ended
		return nil, errors.Join(err, turn.Close())
	}
	return turn, nil
}

// fetchDatabase copies the database to where it is worked on and checks the copy: against
// its statement, and from beginning to end.
func (r *restoration) fetchDatabase(ctx context.Context) error {
	if err := r.removeWork(); err != nil {
		return err
	}
	size, sum, err := durable.Copy(r.DatabaseFile, r.work)
	if err != nil {
		return failed("copying the database", err)
	}
	if err := r.checkDatabase(ctx, backup.Copy{SHA256: sum, Size: uint64(size)}); err != nil {
		return errors.Join(err, r.removeWork())
	}
	return nil
}

func (r *restoration) checkDatabase(ctx context.Context, got backup.Copy) (err error) {
	if !r.Unsigned {
		if err := r.readStatement(); err != nil {
			return err
		}
		if want := r.Statement.Copy; want.SHA256 != got.SHA256 || want.Size != got.Size {
			return fmt.Errorf("%s is not the file that its statement is of: %w", r.DatabaseFile, backup.ErrFile)
		}
	}
	if r.Point, err = sqlite.Check(ctx, r.work); err != nil {
		return fmt.Errorf("%s: %w", r.DatabaseFile, err)
	}
	return nil
}

func (r *restoration) readStatement() error {
	file, err := os.ReadFile(r.DatabaseFile + ".sig")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNoStatement, err)
	}
	if err != nil {
		return failed("reading the statement of the database", err)
	}
	if r.Statement, err = r.Backup.Vouched(file); err != nil {
		return fmt.Errorf("%s.sig: %w", r.DatabaseFile, err)
	}
	return nil
}

// openDatabase opens the database that is worked on.
func (r *restoration) openDatabase(ctx context.Context) (err error) {
	r.old, err = sqlite.OpenOld(ctx, r.work)
	switch {
	case errors.Is(err, store.ErrExists): // it is sealed
		r.old = nil
		return r.openSealed(ctx)
	case err == nil && r.Unsigned:
		return fmt.Errorf("%s: %w", r.DatabaseFile, ErrUnsealed)
	}
	return err
}

func (r *restoration) openSealed(ctx context.Context) (err error) {
	r.store, err = sqlite.Open(ctx, sqlite.Config{Path: r.work, Existing: true, Logger: r.Log.Named("store")})
	return err
}

func (r *restoration) closeDatabase() (err error) {
	if r.old != nil {
		err = r.old.Close()
	}
	if r.store != nil {
		err = errors.Join(err, r.store.Close())
	}
	return err
}

// salvagedSuffix is the suffix of a database made of salvaged records.
const salvagedSuffix = ".salvaged"

// removeWork removes the database that is worked on, with SQLite's files.
func (r *restoration) removeWork() error {
	var all []error
	for _, database := range []string{"", ".unsealed", ".migrating", salvagedSuffix} {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal", ".lock"} {
			if err := os.Remove(r.work + database + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				all = append(all, err)
			}
		}
	}
	return errors.Join(all...)
}

// marker returns the marker of an interrupted restore, or a new one.
func (h Host) marker() (string, error) {
	text, err := os.ReadFile(h.markPath())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 { // interrupted before the token was touched
		return backup.NewMarker(), nil
	}
	return string(text), failed("reading the mark of a restore", err)
}

// mark records durably the marker of the key that shows that the keys on the token are a
// restore's.
func (h Host) mark(marker string) error {
	return failed("marking the restore", durable.WriteFile(h.markPath(), []byte(marker), 0o600))
}

// unmark removes the mark if nothing is on the token.
func (r *restoration) unmark(ctx context.Context) error {
	left, err := r.token.Keys(context.WithoutCancel(ctx))
	if err != nil || len(left) > 0 {
		return err
	}
	return os.Remove(r.markPath())
}

// putInPlace renames the database. From then on the appliance exists.
func (r *restoration) putInPlace() error {
	err := durable.Rename(r.work, r.Host.Store)
	if err == nil {
		err = r.removeWork()
	}
	return failed("putting the database in place, run restore again", err)
}

// Unfinished returns an error wrapping [ErrInterrupted] if a restore was interrupted
// before its store was in place. Nothing else may begin then: the keys on the token
// belong to no appliance.
func (h Host) Unfinished() error {
	if exists(h.markPath()) && !exists(h.Store) {
		return fmt.Errorf("%s: %w", h.StateDir, ErrInterrupted)
	}
	return nil
}

// Tidy removes the marks of a restore once its store is in place: at its end, or at the
// next start.
func (h Host) Tidy(ctx context.Context, token hsm.Token) error {
	if !exists(h.markPath()) {
		return nil
	}
	marker, err := h.marker()
	if err != nil {
		return err
	}
	if err := (backup.Restorer{Token: token, Marker: marker}).Done(ctx); err != nil {
		return err
	}
	return failed("removing the mark of the restore", os.Remove(h.markPath()))
}
