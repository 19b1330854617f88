package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"

	"countersign/appliance/store"

	"countersign/internal/durable"
)

// Modes of what the store creates: nobody but its user.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// lock takes the exclusive lock that keeps a second process, or a second Store
// of this process, off the same file. It is a file of its own, since closing any
// descriptor of the database itself would drop SQLite's own locks (POSIX).
func lock(path string) (io.Closer, error) {
	f, err := durable.Lock(path + ".lock")
	switch {
	case errors.Is(err, durable.ErrLocked):
		return nil, fmt.Errorf("%w: %s is in use by another process", store.ErrUnavailable, path)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return f, nil
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
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return nil
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
const schemaVersion = 8

// ErrMigrate means that the store has the schema of an older program. Only
// countersignd migrate changes a schema, and seals it.
var ErrMigrate = fmt.Errorf("%w: its schema is of an older release", store.ErrUnavailable)

// makeSchema checks that the file is ours, turns WAL on, and makes the schema in an empty
// file.
func makeSchema(ctx context.Context, db *sql.DB) error {
	version, err := identify(ctx, db)
	if err != nil {
		return err
	}
	if version > schemaVersion { // it is judged by what it says of itself, see verifySchema
		if err := hasHead(ctx, db, version); err != nil {
			return err
		}
	}
	if err := useWAL(ctx, db); err != nil {
		return err
	}
	switch {
	case version == 0:
		return upTo(ctx, db, schemaVersion)
	case version < schemaVersion && !founded(ctx, db): // an interruption left it half made
		return upTo(ctx, db, schemaVersion)
	case version < schemaVersion:
		return fmt.Errorf("%w (schema %d, this program knows %d)", ErrMigrate, version, schemaVersion)
	}
	return nil
}

// hasHead refuses a newer schema that does not even have the table which says what it is.
func hasHead(ctx context.Context, db *sql.DB, version int64) error {
	var heads int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM head").Scan(&heads); err != nil {
		return fmt.Errorf("%w: schema %d was made by a newer version of this program, which knows %d", store.ErrUnavailable, version, schemaVersion)
	}
	return nil
}

// founded reports whether anything was stored, or may have been.
func founded(ctx context.Context, db *sql.DB) bool {
	var rows int
	err := db.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM key) + (SELECT count(*) FROM policy) + (SELECT count(*) FROM client)").Scan(&rows)
	return err != nil || rows > 0
}

func useWAL(ctx context.Context, db *sql.DB) error {
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return unavailable(err)
	}
	if mode != "wal" {
		return fmt.Errorf("%w: journal mode is %s: the file system has no shared memory for WAL", store.ErrUnavailable, mode)
	}
	return nil
}

// upTo brings the schema to a version.
func upTo(ctx context.Context, db *sql.DB, version int64) error {
	p, err := provider(db)
	if err != nil {
		return err
	}
	if _, err := p.UpTo(ctx, version); err != nil {
		return fmt.Errorf("migrating to schema %d: %w", version, unavailable(err))
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

// identify refuses a file that is not an empty database or one of ours, and returns the
// version of its schema.
func identify(ctx context.Context, db *sql.DB) (version int64, err error) {
	var id, tables int
	err = errors.Join(
		db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id),
		db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version),
		db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE name NOT IN ('goose_db_version', 'sqlite_sequence')").Scan(&tables),
	)
	switch {
	case err != nil:
		return 0, unavailable(err)
	case id != applicationID && (id != 0 || tables != 0), id == applicationID && version == 0:
		return 0, fmt.Errorf("%w: not a Countersign store", store.ErrUnavailable)
	}
	return version, nil
}
