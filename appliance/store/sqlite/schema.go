package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pressly/goose/v3"

	"countersign/appliance/store"
	"countersign/appliance/store/head"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID in the header of the file identifies a store: "OA1N".
const applicationID = 0x4F41314E

// schemaVersion is the number of the newest migration; each migration sets user_version to its own.
const schemaVersion = 9

// sealedVersion is the oldest schema whose records have seals. Upgrade brings it and later ones to schemaVersion.
const sealedVersion = 8

// ErrMigrate means that a release without seals made the schema. Only countersignd migrate changes and seals
// such a store.
var ErrMigrate = fmt.Errorf("%w: its schema is of an older release", store.ErrUnavailable)

// ErrNewer means that a newer release made the schema, and this one would misread it.
var ErrNewer = fmt.Errorf("%w: the schema is newer than this program: run a newer release", store.ErrUnavailable)

// makeSchema checks that the file is a store, turns WAL on, and creates the schema in an empty
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
	case version < sealedVersion:
		return fmt.Errorf("%w (schema %d, this program knows %d)", ErrMigrate, version, schemaVersion)
	}
	return nil
}

// hasHead refuses a newer schema without the table that says which programs may use it.
func hasHead(ctx context.Context, db *sql.DB, version int64) error {
	var heads int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM head").Scan(&heads); err != nil {
		return fmt.Errorf("%w: schema %d, and this program knows %d", ErrNewer, version, schemaVersion)
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

// upTo migrates the schema to a version.
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

// identify refuses a file that is neither empty nor a store, and returns the version of its schema.
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

// schemaSetting is the sealed setting that describes the schema. Its first line is "schema N
// readable by M": the migration that made it, and the oldest schema version whose programs may use
// it. Then follows one line for each table, index, trigger and view, with the SHA-256 of its
// definition. A program of release N-1 thus accepts the additions of migration N, and no others.
const schemaSetting = "schema"

// readableBy is the oldest schema version whose programs may use this one.
const readableBy = 9

// object names a table, index, trigger or view.
type object struct{ kind, name string }

func (o object) String() string { return o.kind + " " + o.name }

// schemaOf reads the objects of the database, each with the hash of its definition.
func schemaOf(from source) (map[object]string, error) {
	type row struct {
		object
		hash string
	}
	all, err := collect(from, func(s scanner) (r row, err error) {
		var table string
		var definition sql.NullString // NULL: an index that SQLite made for a constraint
		err = s.Scan(&r.kind, &r.name, &table, &definition)
		r.hash = fmt.Sprintf("%x", sha256.Sum256([]byte(table+"\n"+definition.String)))
		return r, err
	}, `SELECT type, name, tbl_name, sql FROM sqlite_schema`)
	found := map[object]string{}
	for _, r := range all {
		found[r.object] = r.hash
	}
	return found, err
}

// manifest returns the value of the setting for a schema.
func manifest(schema map[object]string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "schema %d readable by %d\n", schemaVersion, readableBy)
	for _, o := range slices.SortedFunc(maps.Keys(schema), func(a, b object) int { return strings.Compare(a.String(), b.String()) }) {
		fmt.Fprintf(&b, "%s %s\n", o, schema[o])
	}
	return []byte(b.String())
}

// parseManifest parses a manifest. It is sealed, so a manifest that cannot be parsed is of a newer
// program.
func parseManifest(text []byte) (version, readable int, schema map[object]string, err error) {
	first, rest, _ := strings.Cut(string(text), "\n")
	if n, err := fmt.Sscanf(first, "schema %d readable by %d", &version, &readable); n != 2 || err != nil {
		return 0, 0, nil, fmt.Errorf("%w: this program does not know the schema %.80q of the store", store.ErrUnavailable, first)
	}
	schema = map[object]string{}
	for line := range strings.Lines(rest) {
		words := strings.Fields(line)
		if len(words) != 3 {
			return 0, 0, nil, fmt.Errorf("%w: this program does not know the schema %.80q of the store", store.ErrUnavailable, line)
		}
		schema[object{words[0], words[1]}] = words[2]
	}
	return version, readable, schema, nil
}

// foreign lists the differences from the schema of the manifest.
func foreign(found, want map[object]string) (names []string) {
	for o, hash := range found {
		switch known, ok := want[o]; {
		case !ok:
			names = append(names, o.String()+" is foreign")
		case known != hash:
			names = append(names, o.String()+" was changed")
		}
	}
	for o := range want {
		if _, ok := found[o]; !ok {
			names = append(names, o.String()+" is missing")
		}
	}
	slices.Sort(names)
	return names
}

// madeBefore caches the results of made, by version.
var madeBefore sync.Map

// made returns the schema that the migrations up to a version make.
func made(ctx context.Context, version int64) (map[object]string, error) {
	if schema, ok := madeBefore.Load(version); ok {
		return maps.Clone(schema.(map[object]string)), nil
	}
	schema, err := makeOnce(ctx, version)
	if err == nil {
		madeBefore.Store(version, maps.Clone(schema))
	}
	return schema, err
}

func makeOnce(ctx context.Context, version int64) (map[object]string, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }() // nothing of it is kept
	db.SetMaxOpenConns(1)             // each connection has a memory of its own
	if err := upTo(ctx, db, version); err != nil {
		return nil, err
	}
	return schemaIn(ctx, db)
}

// schemaIn reads the schema of a database that has no writer yet.
func schemaIn(ctx context.Context, db *sql.DB) (map[object]string, error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return schemaOf(snapshot{ctx: ctx, tx: tx})
}

// onlyOurs returns an error that wraps [store.ErrForged] unless a schema is the result of the
// migrations up to a version. It runs before the schema is sealed: a planted trigger could change
// the records to be sealed, and would be on the sealed list.
func onlyOurs(ctx context.Context, found map[object]string, version int64) error {
	want, err := made(ctx, version)
	if err != nil {
		return err
	}
	goose := object{"table", "goose_db_version"} // is worded by the library
	if _, there := found[goose]; there {
		want[goose] = found[goose]
	}
	if names := foreign(found, want); len(names) > 0 {
		return fmt.Errorf("the schema is not what countersignd made: %s: %w", strings.Join(names, ", "), store.ErrForged)
	}
	return nil
}

// ours returns the schema of a store that is about to be sealed.
func ours(ctx context.Context, t *txn) (map[object]string, error) {
	found, err := schemaOf(t)
	if err == nil {
		err = onlyOurs(ctx, found, schemaVersion)
	}
	return found, err
}

// verifySchema compares the schema with the sealed manifest, which is one of the settings.
func (v *vault) verifySchema(from source, settings head.Records) error {
	setting, err := head.Find(settings, store.Setting{Name: schemaSetting})
	if err != nil {
		return v.seals.Report("the setting " + schemaSetting + " is missing")
	}
	text := setting.Value
	version, readable, want, err := parseManifest(text)
	if err != nil {
		return err
	}
	if readable > schemaVersion {
		return fmt.Errorf("%w: it needs a program that knows schema %d, and this one knows %d",
			ErrNewer, readable, schemaVersion)
	}
	found, err := schemaOf(from)
	if err != nil {
		return err
	}
	if names := foreign(found, want); len(names) > 0 {
		return v.seals.Report("the schema is not what countersignd made: " + strings.Join(names, ", "))
	}
	var header int
	if err := from.row("PRAGMA user_version").Scan(&header); err != nil {
		return unavailable(err)
	}
	if header != version {
		return v.seals.Report(fmt.Sprintf("user_version of the database is %d, and its sealed schema is %d", header, version))
	}
	v.stored = version
	if version >= schemaVersion {
		v.upgraded.Store(true)
	}
	return nil
}

// schemaUnchanged compares the schema with the verified one, in each transaction that writes: a
// trigger made while the daemon runs could restore old records with their seals. Another program
// can also reset SQLite's schema number. So after any write of another program the connection
// rereads the schema, and compares all of it. Once foreign, the schema stays foreign until a
// restart.
func (t *txn) schemaUnchanged() error {
	v := t.vault.Load()
	if v == nil {
		return nil
	}
	var schema, data int64
	err := errors.Join(t.row("PRAGMA schema_version").Scan(&schema), t.row("PRAGMA data_version").Scan(&data))
	if err != nil {
		return err
	}
	if v.schema != nil && data != v.data && !v.foreign {
		found, err := t.parsedAnew()
		if err != nil {
			return err
		}
		v.foreign = len(foreign(found, v.schema)) > 0
	}
	v.data = data
	if v.foreign = v.foreign || schema != v.cookie; v.foreign {
		return v.seals.Report("another program changed the schema while this one served: stop it, and look with countersignd doctor")
	}
	return nil
}

// parsedAnew makes the connection reread the schema. The transaction writes, so the schema cannot
// change meanwhile.
func (t *txn) parsedAnew() (map[object]string, error) {
	if _, err := t.conn.ExecContext(context.Background(), "PRAGMA writable_schema = RESET"); err != nil {
		return nil, err
	}
	return schemaOf(t)
}
