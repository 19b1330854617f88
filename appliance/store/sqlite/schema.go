package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"countersign/appliance/store"
)

// schemaSetting is the sealed setting that says what the schema is: its first line is
// "schema N readable by M", for the migration that made it and the oldest program that
// may use it; then one line for each table, index, trigger and view, with the SHA-256 of
// its definition. A program of release N-1 so takes what the migration of N has added,
// and nothing that anybody else did.
const schemaSetting = "schema"

// readableBy is the oldest schema version whose programs may use this one.
const readableBy = 8

// object is a table, index, trigger or view by its type and name.
type object struct{ kind, name string }

func (o object) String() string { return o.kind + " " + o.name }

// schemaOf reads what the database has: each object with the hash of its definition.
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

// manifest is the value of the setting for a schema.
func manifest(schema map[object]string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "schema %d readable by %d\n", schemaVersion, readableBy)
	for _, o := range slices.SortedFunc(maps.Keys(schema), func(a, b object) int { return strings.Compare(a.String(), b.String()) }) {
		fmt.Fprintf(&b, "%s %s\n", o, schema[o])
	}
	return []byte(b.String())
}

// parseManifest reads what manifest writes. The manifest is sealed: what cannot be read
// is of a newer program.
func parseManifest(text []byte) (readable int, schema map[object]string, err error) {
	var version int
	first, rest, _ := strings.Cut(string(text), "\n")
	if n, err := fmt.Sscanf(first, "schema %d readable by %d", &version, &readable); n != 2 || err != nil {
		return 0, nil, fmt.Errorf("%w: the store says of its schema %.80q, which this program does not know", store.ErrUnavailable, first)
	}
	schema = map[object]string{}
	for line := range strings.Lines(rest) {
		words := strings.Fields(line)
		if len(words) != 3 {
			return 0, nil, fmt.Errorf("%w: the store says of its schema %.80q, which this program does not know", store.ErrUnavailable, line)
		}
		schema[object{words[0], words[1]}] = words[2]
	}
	return readable, schema, nil
}

// foreign names what differs from the schema of the manifest.
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

// madeBefore has what made has returned, by version: it is always the same.
var madeBefore sync.Map

// made is the schema that the migrations up to a version make.
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

// onlyOurs returns an error that wraps [store.ErrForged] unless a schema is what the
// migrations up to a version make. Nothing may be sealed before: a trigger that is there
// already could change what is sealed, and would be on the sealed list.
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

// ours is the schema of a store that is about to be sealed.
func ours(ctx context.Context, t *txn) (map[object]string, error) {
	found, err := schemaOf(t)
	if err == nil {
		err = onlyOurs(ctx, found, schemaVersion)
	}
	return found, err
}

// verifySchema compares the schema with the sealed manifest, which is among the settings.
func (v *vault) verifySchema(from source, settings hanging) error {
	setting, err := find(settings, store.Setting{Name: schemaSetting})
	if err != nil {
		return v.seals.Report("the setting " + schemaSetting + " is missing")
	}
	text := setting.Value
	readable, want, err := parseManifest(text)
	if err != nil {
		return err
	}
	if readable > schemaVersion {
		return fmt.Errorf("%w: the schema is for programs that know schema %d, and this one knows %d: run a newer release",
			store.ErrUnavailable, readable, schemaVersion)
	}
	found, err := schemaOf(from)
	if err != nil {
		return err
	}
	if names := foreign(found, want); len(names) > 0 {
		return v.seals.Report("the schema is not what countersignd made: " + strings.Join(names, ", "))
	}
	return nil
}

// schemaUnchanged holds the schema against the one that was verified. It runs in each
// transaction that writes: a trigger that is made while the daemon runs could put old
// records back, seals and all. SQLite's number of the schema can be put back, so any write
// of another program makes the connection forget the schema that it has read, and has the
// whole compared. What was foreign once stays so until a restart.
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

// parsedAnew makes the connection forget the schema that it has read, and reads it. In a
// transaction that writes nobody changes it meanwhile.
func (t *txn) parsedAnew() (map[object]string, error) {
	if _, err := t.conn.ExecContext(context.Background(), "PRAGMA writable_schema = RESET"); err != nil {
		return nil, err
	}
	return schemaOf(t)
}

// Unseal implements [store.Store].
func (s *database) Unseal(ctx context.Context, seals *store.Seals, anchor store.Anchor) error {
	v := &vault{seals: seals, anchor: anchor}
	const doing = "unsealing the store"
	err := s.write(ctx, doing, func(t *txn) error { return v.open(t) })
	if err != nil {
		return err
	}
	v.behind.Store(v.newest.Load() != nil)
	if err := v.catchUp(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	s.vault.Store(v)
	return nil
}

// open verifies what there is.
func (v *vault) open(t *txn) error {
	schema, err := t.parsedAnew()
	if err == nil {
		err = errors.Join(t.row("PRAGMA schema_version").Scan(&v.cookie), t.row("PRAGMA data_version").Scan(&v.data))
	}
	if err != nil {
		return err
	}
	var floor store.Mark
	if v.anchor != nil {
		floor = v.anchor.Floor()
	}
	h, err := v.head(t, floor)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		var some bool
		err := t.row(`SELECT EXISTS (SELECT 1 FROM key) OR EXISTS (SELECT 1 FROM setting) OR EXISTS (SELECT 1 FROM client)`).Scan(&some)
		if err == nil && some {
			err = v.seals.Report("the head is missing")
		}
		return err // nil: not founded yet
	case err != nil:
		return err
	case h.MAC < floor.MAC:
		return v.seals.Report(fmt.Sprintf("the head is under mac@%d, and mac@%d was in force before", h.MAC, floor.MAC))
	}
	var settings hanging
	for _, kind := range store.AllHanging() {
		all, _, err := v.hangs(t, h, kind)
		if err != nil {
			return err
		}
		if kind == store.HangingSettings {
			settings = all
		}
	}
	if err := v.verifySchema(t, settings); err != nil {
		return err
	}
	m := store.MarkOf(h)
	v.schema = schema
	v.seals.Use(h.MAC)
	v.newest.Store(&m)
	return nil
}

// Claims implements [store.Store].
func (s *database) Claims(ctx context.Context) (c store.Claims, err error) {
	const doing = "reading what the store claims"
	tx, err := s.r.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return c, readError(ctx, doing, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	from := snapshot{ctx: ctx, tx: tx}
	var heads int
	if err := from.row(`SELECT count(*) FROM head WHERE name = 'head'`).Scan(&heads); err != nil {
		return c, readError(ctx, doing, err)
	}
	c.Founded = heads > 0
	return c, readError(ctx, doing, claims(from, &c))
}

// claims reads keys, settings and the newest policy, of any schema from 7 on.
func claims(from source, c *store.Claims) (err error) {
	c.Keys, err = collect(from, func(s scanner) (store.Key, error) {
		k, err := scanKey(s)
		return k.Key, err
	}, `SELECT `+keyColumns+` FROM key ORDER BY name, version`)
	if err != nil {
		return err
	}
	c.Settings = map[string][]byte{}
	_, err = collect(from, func(s scanner) (none struct{}, err error) {
		var one store.Setting
		if err = s.Scan(&one.Name, &one.Value); one.Name != schemaSetting {
			c.Settings[one.Name] = one.Value
		}
		return none, err
	}, `SELECT name, value FROM setting`)
	if err != nil {
		return err
	}
	p, err := scanPolicy(from.row(`SELECT ` + policyColumns + ` FROM policy ORDER BY version DESC LIMIT 1`))
	c.Policy = p.Policy
	return unlessNoRow(err)
}
