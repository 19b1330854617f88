package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"

	"countersign/appliance/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID in the file's header says whose it is: "OA1N".
const applicationID = 0x4F41314E

// schemaVersion is the number of the newest migration; each writes its own into
// user_version.
const schemaVersion = 1

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
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir,
		goose.WithLogger(goose.NopLogger()), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrating: %w", unavailable(err))
	}
	return nil
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
