package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pressly/goose/v3"

	"countersign/appliance/store"
)

// Modes of what the store creates: nobody but its user.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// lock takes the exclusive lock that keeps a second process, or a second Store
// of this process, off the same file. It is a file of its own, since closing any
// descriptor of the database itself would drop SQLite's own locks (POSIX).
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s is in use by another process", store.ErrUnavailable, path)
	}
	return nil, fmt.Errorf("%w: locking %s.lock: %w", store.ErrUnavailable, path, err)
}

// create makes the database file, so that it never exists with another mode, and
// makes its directory entry durable. SQLite gives the mode of the database to its
// -wal and -shm files. The caller holds the lock.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if errors.Is(err, fs.ErrExist) {
		return tighten(path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return syncDir(filepath.Dir(path))
}

// tighten gives files of an older store, or a restored copy, the right mode.
func tighten(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		err := os.Chmod(path+suffix, fileMode)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	err = d.Sync()
	if err = errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("%w: syncing %s: %w", store.ErrUnavailable, dir, err)
	}
	return nil
}

// Settings of every connection. Checkpoints are run by the writer, because one
// that SQLite runs by itself keeps a failed fsync to itself.
var pragmas = []string{
	"busy_timeout(1000)",
	"synchronous(FULL)",
	"foreign_keys(1)",
	"trusted_schema(0)",
	"cache_size(-2048)", // KiB
	"wal_autocheckpoint(0)",
	"journal_size_limit(16777216)",
}

// dsn is the driver's name for the file; mode is SQLite's: rw or ro.
func dsn(path, mode string) string {
	q := url.Values{"mode": {mode}, "_dqs": {"0"}, "_defensive": {"1"}, "_pragma": pragmas}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID in the file's header says whose it is: "OA1N".
const applicationID = 0x4F41314E

// schemaVersion is the number of the newest migration; each writes its own into
// user_version.
const schemaVersion = 6

// migrate checks that the file is ours and not newer than this program, turns WAL
// on and brings the schema up to date.
func migrate(ctx context.Context, db *sql.DB) error {
	if err := identify(ctx, db); err != nil {
		return err
	}
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return unavailable(err)
	}
	if mode != "wal" {
		return fmt.Errorf("%w: journal mode is %s: the file system has no shared memory for WAL", store.ErrUnavailable, mode)
	}
	p, err := provider(db)
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrating: %w", unavailable(err))
	}
	return nil
}

func provider(db *sql.DB) (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectSQLite3, db, dir,
		goose.WithLogger(goose.NopLogger()), goose.WithDisableGlobalRegistry(true))
}

// identify refuses a file that is not an empty database or one of ours.
func identify(ctx context.Context, db *sql.DB) error {
	var id, version, tables int
	err := errors.Join(
		db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id),
		db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version),
		db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE name NOT IN ('goose_db_version', 'sqlite_sequence')").Scan(&tables),
	)
	switch {
	case err != nil:
		return unavailable(err)
	case id != applicationID && (id != 0 || tables != 0):
		return fmt.Errorf("%w: not a Countersign store", store.ErrUnavailable)
	case version > schemaVersion:
		return fmt.Errorf("%w: schema %d was made by a newer version of this program, which knows %d", store.ErrUnavailable, version, schemaVersion)
	default:
		return nil
	}
}
