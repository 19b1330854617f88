package softhsmtest

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/pressly/goose/v3"
	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
)

// lastUnsealed is the schema of the last release that sealed nothing.
const lastUnsealed = 5

// cmdOlder makes the store of a dev that was stopped what a release before the seals
// would have made of the same events, and takes the anchor away.
func cmdOlder(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "DIR")
	migrations, err := filepath.Abs("../appliance/store/sqlite/migrations")
	ts.Check(err)
	conf := filepath.Join(ts.MkAbs(args[0]), "softhsm2.conf")
	offline(ts, append(environment(ts), "SOFTHSM2_CONF="+conf), "older", args[0], migrations)
}

// older does the work of cmdOlder.
func older(dir, migrations string) error {
	ctx := context.Background()
	token, err := openToken(ctx, "countersign-dev", filepath.Join(dir, "pin"))
	if err != nil {
		return err
	}
	defer token.Close()
	path, made := filepath.Join(dir, "countersign.db"), filepath.Join(dir, "older.db")
	db, err := sql.Open("sqlite", made+"?_pragma=journal_mode(WAL)")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1) // for ATTACH
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, os.DirFS(migrations), goose.WithLogger(goose.NopLogger()))
	if err == nil {
		_, err = provider.UpTo(ctx, lastUnsealed)
	}
	if err == nil {
		_, err = db.Exec(`ATTACH ? AS sealed`, path)
	}
	if err == nil {
		err = copyTables(db)
	}
	if err == nil {
		err = makeMACs(ctx, db, token)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	for _, name := range []string{path + "-wal", path + "-shm", filepath.Join(dir, "anchor")} {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	return os.Rename(made, path)
}

// copyTables copies the columns that both schemas have, and makes the others.
func copyTables(db *sql.DB) error {
	tables, err := column(db, `SELECT m.name FROM main.sqlite_schema m JOIN sealed.sqlite_schema s USING (type, name)
		WHERE type = 'table' AND name NOT LIKE 'goose%' AND name NOT LIKE 'sqlite%'`)
	if err != nil {
		return err
	}
	statements := []string{`PRAGMA foreign_keys = OFF`}
	for _, table := range tables {
		columns, err := column(db, `SELECT m.name FROM pragma_table_info(?1, 'main') m JOIN pragma_table_info(?1, 'sealed') s USING (name)`, table)
		if err != nil {
			return err
		}
		into, from := strings.Join(columns, ", "), strings.Join(columns, ", ")
		switch table {
		case "client":
			into, from = into+", highest", from+", (SELECT highest FROM sealed.restraint r WHERE r.client = ref)"
		case "decision":
			into, from = into+", device", from+", (SELECT min(ref) FROM sealed.device)"
		}
		statements = append(statements, fmt.Sprintf(`INSERT INTO main."%s" (%s) SELECT %s FROM sealed."%s"`, table, into, from, table))
	}
	statements = append(statements,
		`DELETE FROM main.setting WHERE name = 'schema'`,
		`INSERT INTO guard (client, wrong, recent, until_us) SELECT client, wrong, recent, until_us FROM sealed.restraint WHERE wrong > 0`)
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return copyWindows(db)
}

// copyWindows makes the table of what limits were charged.
func copyWindows(db *sql.DB) error {
	rows, err := db.Query(`SELECT client, windows FROM sealed.restraint WHERE windows IS NOT NULL`)
	if err != nil {
		return err
	}
	charged := map[int64][]byte{}
	for rows.Next() {
		var client int64
		var windows []byte
		if err := rows.Scan(&client, &windows); err != nil {
			return err
		}
		charged[client] = windows
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for client, b := range charged {
		var sums []store.Sum
		if err := cbor.Unmarshal(b, &sums); err != nil {
			return err
		}
		for _, sum := range sums {
			total, period := sum.Buckets[0], int64(sum.Period)
			for _, more := range sum.Buckets[1:] {
				total.Amount, total.Count = total.Amount+more.Amount, total.Count+more.Count
			}
			start := time.Now().Unix() / period * period // of the aligned window
			_, err := db.Exec(`INSERT INTO used (client, service, period_s, window_us, amount, count) VALUES (?, ?, ?, ?, ?, ?)`,
				client, int64(sum.Service), period, start*1_000_000, int64(total.Amount), int64(total.Count))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// makeMACs gives clients and administrators their record MACs.
func makeMACs(ctx context.Context, db *sql.DB, token hsm.Token) error {
	var id []byte
	if err := db.QueryRow(`SELECT id FROM main.key WHERE name = 'mac' ORDER BY version DESC LIMIT 1`).Scan(&id); err != nil {
		return err
	}
	records := map[string]derive.Record{} // by the statement that stores its MAC
	rows, err := db.Query(`SELECT 'client', id, name, signing_key, uv_key, verifier, status, roles, version FROM main.client
		UNION ALL SELECT 'admin', id, name, public, NULL, NULL, status, json_array(name), version FROM main.admin`)
	if err != nil {
		return err
	}
	for rows.Next() {
		var r derive.Record
		var table, name, roles string
		var id, signing, uv []byte
		if err := rows.Scan(&table, &id, &name, &signing, &uv, &r.Verifier, &r.Status, &roles, &r.Version); err != nil {
			return err
		}
		r.Kind = table
		if err := json.Unmarshal([]byte(roles), &r.Roles); err != nil {
			return err
		}
		r.Client, r.SigningKey = protocol.ClientID(id), protocol.PublicKey(signing)
		if uv != nil {
			key := protocol.PublicKey(uv)
			r.UVKey = &key
		}
		records[fmt.Sprintf(`UPDATE main.%s SET mac = ? WHERE id = X'%x'`, table, id)] = r
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for statement, r := range records {
		mac, err := token.MAC(ctx, hsm.KeyID(id), derive.RecordInput(r))
		if err != nil {
			return err
		}
		if _, err := db.Exec(statement, mac); err != nil {
			return err
		}
	}
	return nil
}

// column reads a column of texts.
func column(db *sql.DB, query string, args ...any) (all []string, err error) {
	rows, err := db.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err is what counts
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}
