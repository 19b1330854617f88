package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"countersign/appliance/store"
)

// ErrEmpty means that the database holds no appliance: its schema was never made, or not to the end.
var ErrEmpty = fmt.Errorf("%w: it is empty", store.ErrUnavailable)

// openReadOnly opens an existing store and changes no byte of it: it creates no file, copies no log into the database,
// and neither makes nor upgrades a schema.
func openReadOnly(ctx context.Context, c Config) (*database, error) {
	if _, err := os.Stat(c.Path); err != nil {
		return nil, unavailable(err)
	}
	lock, err := lockIfThere(c.Path)
	if err != nil {
		return nil, err
	}
	s, err := connectReadOnly(ctx, c)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s.lock = lock
	return s, nil
}

// lockIfThere takes the store's lock without creating its file. Without the file no process has the store open.
func lockIfThere(path string) (io.Closer, error) {
	if _, err := os.Stat(path + ".lock"); errors.Is(err, os.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	return lock(path)
}

func connectReadOnly(ctx context.Context, c Config) (*database, error) {
	name, err := readOnlyDSN(c.Path)
	if err != nil {
		return nil, err
	}
	wdb, err := sql.Open("sqlite", name)
	if err != nil {
		return nil, unavailable(err)
	}
	wdb.SetMaxOpenConns(1)
	if err := checkSchema(ctx, wdb); err != nil {
		return nil, errors.Join(err, wdb.Close())
	}
	s, err := connect(ctx, connection{path: c.Path, writes: wdb, reads: name, log: c.Logger})
	if err != nil {
		return nil, err
	}
	s.readOnly, s.w.readOnly = true, true
	go s.w.run()
	return s, nil
}

// readOnlyDSN returns the driver's name of a file that nothing writes. A log that a killed daemon left is read together
// with its -shm file, which is not changed either.
func readOnlyDSN(path string) (string, error) {
	info, err := os.Stat(path + "-wal")
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && info.Size() == 0:
		return dsn(path, "ro") + "&immutable=1", nil
	case err != nil:
		return "", unavailable(err)
	}
	if _, err := os.Stat(path + "-shm"); err != nil {
		return "", fmt.Errorf("%w: it has a log, and cannot be read without its -shm file before countersignd serve has opened it: %w",
			store.ErrUnavailable, err)
	}
	return dsn(path, "ro") + "&readonly_shm=1", nil
}

// checkSchema is [makeSchema] for a store that is not changed.
func checkSchema(ctx context.Context, db *sql.DB) error {
	version, err := identify(ctx, db)
	switch {
	case err != nil:
		return err
	case version > schemaVersion:
		return hasHead(ctx, db, version)
	case version == 0, version < schemaVersion && !founded(ctx, db):
		return ErrEmpty
	case version < sealedVersion:
		return fmt.Errorf("%w (schema %d, this program knows %d)", ErrMigrate, version, schemaVersion)
	}
	return nil
}

// couldWrite returns [store.ErrReadOnly] if the permissions of the database and its directory allow a change, and an
// error that names the path otherwise.
func (s *database) couldWrite() error {
	for _, path := range []string{s.path, filepath.Dir(s.path)} {
		if err := unix.Access(path, unix.W_OK); err != nil {
			return fmt.Errorf("%w: no change can be written: %w", store.ErrUnavailable, &os.PathError{Op: "access", Path: path, Err: err})
		}
	}
	return store.ErrReadOnly
}
