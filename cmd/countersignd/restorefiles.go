package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"countersign/appliance/backup"
	"countersign/appliance/store/sqlite"
	"countersign/internal/cli"
	"countersign/internal/config"

	"countersign/internal/durable"
)

// fetchDatabase copies the database to where it is worked on, and checks it: against
// its statement, and from beginning to end.
func (r *restoration) fetchDatabase(ctx context.Context) error {
	if err := r.removeWork(); err != nil {
		return err
	}
	size, sum, err := durable.Copy(r.flags.database, r.work)
	if err != nil {
		return cli.Fail(cli.IO, fmt.Errorf("copying the database: %w", err), "")
	}
	if err := r.checkDatabase(ctx, backup.Copy{SHA256: sum, Size: uint64(size)}); err != nil {
		return errors.Join(err, r.removeWork())
	}
	return nil
}

func (r *restoration) checkDatabase(ctx context.Context, got backup.Copy) (err error) {
	if !r.flags.unsigned {
		if r.vouch, err = r.statement(); err != nil {
			return err
		}
		if said := r.vouch.Copy; said.SHA256 != got.SHA256 || said.Size != got.Size {
			return fmt.Errorf("%s is not the file that its statement is of: %w", r.flags.database, backup.ErrFile)
		}
	}
	if r.point, err = sqlite.Check(ctx, r.work); err != nil {
		return fmt.Errorf("%s: %w", r.flags.database, err)
	}
	return nil
}

// statement reads what vouches for the database.
func (r *restoration) statement() (v backup.Statement, err error) {
	file, err := os.ReadFile(r.flags.database + ".sig")
	if errors.Is(err, fs.ErrNotExist) {
		return v, cli.Fail(cli.Failed, fmt.Errorf("nothing vouches for the database: %w", err),
			"countersignctl store backup writes FILE.sig beside FILE; a copy by other means is taken with --unsigned-database")
	}
	if err != nil {
		return v, cli.Fail(cli.IO, err, "")
	}
	if v, err = r.backup.Vouched(file); err != nil {
		return v, fmt.Errorf("%s.sig: %w", r.flags.database, err)
	}
	return v, nil
}

// salvagedSuffix is of the database that is made of what could be salvaged.
const salvagedSuffix = ".salvaged"

// removeWork removes the database that is worked on, with what SQLite has beside it.
func (r *restoration) removeWork() error {
	var failed []error
	for _, database := range []string{"", ".unsealed", ".migrating", salvagedSuffix} {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal", ".lock"} {
			if err := os.Remove(r.work + database + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// markerOf is the marker of the restore before this one, if it did not end, or a new one.
func markerOf(cfg *config.Appliance) (string, error) {
	text, err := os.ReadFile(markPath(cfg))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(text) == 0: // cut off before the token was touched
		return backup.NewMarker(), nil
	case err != nil:
		return "", cli.Fail(cli.IO, err, "")
	}
	return string(text), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// mark says durably which marker shows that what is on the token is a restore's.
func (r *restoration) mark(marker string) error {
	err := durable.WriteFile(markPath(r.cfg), []byte(marker), 0o600)
	return cli.Fail(cli.IO, err, "state_dir must be writable")
}

// unmark takes the mark back once nothing is on the token.
func (r *restoration) unmark(ctx context.Context, p *parts) error {
	there, err := p.token.Keys(context.WithoutCancel(ctx))
	if err != nil || len(there) > 0 {
		return err
	}
	return os.Remove(markPath(r.cfg))
}

// putInPlace is the moment from which there is an appliance again.
func (r *restoration) putInPlace() error {
	err := durable.Rename(r.work, r.cfg.Store.Path)
	if err == nil {
		err = r.removeWork()
	}
	return cli.Fail(cli.IO, err, "run restore again")
}

// finished refuses to begin anything else where a restore was cut off: what it left on
// the token is of no appliance.
func finished(cfg *config.Appliance) error {
	if exists(markPath(cfg)) && !exists(cfg.Store.Path) {
		return fmt.Errorf("%s: %w", cfg.StateDir, errRestoring)
	}
	return nil
}

// tidy takes the marks of a restore away once its store is in place: at its end, or
// with the next start.
func tidy(ctx context.Context, cfg *config.Appliance, p *parts) error {
	if !exists(markPath(cfg)) || p.locked() {
		return nil
	}
	marker, err := markerOf(cfg)
	if err != nil {
		return err
	}
	if err := (backup.Restorer{Token: p.token, Marker: marker}).Done(ctx); err != nil {
		return err
	}
	return cli.Fail(cli.IO, os.Remove(markPath(cfg)), "")
}
