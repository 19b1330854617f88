package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
	"countersign/internal/durable"
	"countersign/protocol"
)

// Suffixes of the files that a migration makes.
const (
	migratingSuffix = ".migrating" // the copy
	unsealedSuffix  = ".unsealed"  // the old store
)

// Old is an unsealed store of this schema or an earlier one, which is being sealed in a copy beside
// it.
type Old struct {
	path string
	lock io.Closer
	db   *sql.DB
	txn  *txn
}

// OldClient is a client with the MAC of its record (releases before the seals).
type OldClient struct {
	store.Client
	MAC []byte
	store.Restraint
	ref int64
}

// OldAdmin is an administrator with the MAC of the record.
type OldAdmin struct {
	store.Admin
	MAC []byte
}

// Contents is the content of an old store that an administrator must judge.
type Contents struct {
	store.Claims
	Ending  Ending
	Clients []OldClient
	Devices []store.Device
	Admins  []OldAdmin
	Changes []store.Change
}

// Ending counts the things that end when the store is sealed, because they grant something that
// cannot be verified.
type Ending struct{ Invitations, Approvals, Changes, Attempts int }

// OpenOld copies an unsealed store and migrates the schema of the copy. The store itself does not
// change until [Old.Put]. A sealed store is [store.ErrExists].
func OpenOld(ctx context.Context, path string) (*Old, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, unavailable(err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, unavailable(err)
	}
	held, err := lock(path)
	if err != nil {
		return nil, err
	}
	o := &Old{path: path, lock: held}
	if err := o.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("migrating %s: %w", path, err), o.Close())
	}
	return o, nil
}

func (o *Old) open(ctx context.Context) error {
	work := o.path + migratingSuffix
	if err := removeDatabase(work); err != nil {
		return unavailable(err)
	}
	if err := copyDatabase(ctx, o.path, work); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(work, "rw"))
	if err != nil {
		return unavailable(err)
	}
	o.db = db
	db.SetMaxOpenConns(1)
	version, err := identify(ctx, db)
	switch {
	case err != nil:
		return err
	case version >= sealedVersion:
		return fmt.Errorf("it is sealed already: %w", store.ErrExists)
	}
	found, err := schemaIn(ctx, db)
	if err == nil {
		err = onlyOurs(ctx, found, version)
	}
	if err != nil {
		return err
	}
	if err := upTo(ctx, db, sealedVersion-1); err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return unavailable(err)
	}
	o.txn = newTxn(conn, new(atomic.Pointer[vault]))
	_, err = o.txn.exec("BEGIN IMMEDIATE")
	return err
}

// copyDatabase copies a database that no process has open, including its log.
func copyDatabase(ctx context.Context, from, to string) error {
	f, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode) // SQLite takes an empty file
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return unavailable(err)
	}
	db, err := sql.Open("sqlite", dsn(from, "rw"))
	if err != nil {
		return unavailable(err)
	}
	if _, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err == nil {
		_, err = db.ExecContext(ctx, "VACUUM INTO ?", to)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return unavailable(err)
	}
	return nil
}

func removeDatabase(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close gives the migration up, unless it was put in place. It may be called twice.
func (o *Old) Close() error {
	if o.lock == nil {
		return nil
	}
	var errs []error
	if o.txn != nil {
		errs = append(errs, o.txn.close())
	}
	if o.db != nil {
		errs = append(errs, o.db.Close())
	}
	o.txn, o.db = nil, nil
	errs = append(errs, removeDatabase(o.path+migratingSuffix), o.lock.Close())
	o.lock = nil
	return errors.Join(errs...)
}

// Read reads the contents.
func (o *Old) Read() (c Contents, err error) {
	t := o.txn
	for _, read := range []func() error{
		func() error { return claims(t, &c.Claims) },
		func() error {
			return t.row(`SELECT (SELECT count(*) FROM invitation WHERE used_us IS NULL AND expires_us > ?1),
				(SELECT count(*) FROM decision WHERE result = 3 AND final_result IS NULL),
				(SELECT count(*) FROM change WHERE state IN ('open', 'taken')), (SELECT count(*) FROM attempt)`, time.Now().UnixMicro()).
				Scan(&c.Ending.Invitations, &c.Ending.Approvals, &c.Ending.Changes, &c.Ending.Attempts)
		},
		func() (err error) {
			c.Devices, err = collect(t, func(s scanner) (store.Device, error) {
				var r deviceRow
				err := s.Scan(r.values()...)
				return r.Device, err
			}, `SELECT `+deviceColumns+` FROM device ORDER BY name`)
			return err
		},
		func() (err error) { c.Clients, err = o.clients(); return err },
		func() (err error) {
			c.Admins, err = collect(t, func(s scanner) (a OldAdmin, err error) {
				var r adminRow
				err = s.Scan(append([]any{&a.MAC}, r.values()...)...)
				a.Admin = r.Admin
				return a, err
			}, `SELECT mac, `+adminColumns+` FROM admin ORDER BY name`)
			return err
		},
		func() (err error) {
			rows, err := readChanges(t)
			for _, r := range rows {
				err = errors.Join(err, r.Err)
				c.Changes = append(c.Changes, r.Record.(store.Change))
			}
			return err
		},
	} {
		if err := read(); err != nil {
			return c, fmt.Errorf("reading %s: %w", o.path, unavailable(err))
		}
	}
	return c, nil
}

// Records lists up to limit audit records with a sequence number above after.
func (o *Old) Records(_ context.Context, after uint64, limit int) ([]audit.Record, error) {
	return collect(o.txn, scanRecord, listRecords, int64(after), max(limit, 0))
}

// clients returns the clients with their MACs and used limits. Old stores do not record the
// currency.
func (o *Old) clients() ([]OldClient, error) {
	quiet := &vault{seals: store.NewSeals(nil)} // nothing is verified here
	clients, err := collect(o.txn, func(s scanner) (c OldClient, err error) {
		r := &clientRow{}
		if err := s.Scan(append([]any{&c.MAC}, r.values()...)...); err != nil {
			return c, err
		}
		if err := r.read(quiet); err != nil {
			return c, err
		}
		c.Client, c.Restraint, c.ref = r.Client, r.Restraint, r.ref
		return c, nil
	}, `SELECT c.mac, `+clientColumns+` FROM `+clientTables+` ORDER BY c.name`)
	if err != nil {
		return nil, err
	}
	type window struct {
		id protocol.ClientID
		store.Window
	}
	windows, err := collect(o.txn, func(s scanner) (w window, err error) {
		err = s.Scan(fixed(w.id[:]), &w.Service, &w.Period, &w.Start, &w.Amount, &w.Count)
		return w, err
	}, `SELECT c.id, u.service, u.period_s, u.window_us / 1000000, u.amount, u.count FROM used u JOIN client c ON c.ref = u.client
		ORDER BY u.window_us DESC`)
	if err != nil {
		return nil, err
	}
	byID := map[protocol.ClientID]*OldClient{}
	for i := range clients {
		byID[clients[i].ID] = &clients[i]
	}
	for _, w := range windows {
		c := byID[w.id]
		if c == nil {
			continue
		}
		older := 0
		for _, known := range c.Windows {
			if known.Service == w.Service && known.Period == w.Period {
				older++
			}
		}
		if older < 2 { // only two are remembered
			c.Windows = append(c.Windows, w.Window)
		}
	}
	return clients, nil
}

// Sealing configures Seal.
type Sealing struct {
	Seals    *store.Seals      // with the version in force
	Settings map[string][]byte // in place of what there is
	// Clients and administrators whose records are trusted. The other clients are
	// revoked, the other administrators go.
	Clients map[protocol.ClientID]bool
	Admins  map[[8]byte]bool
	// Countersignatures that do not verify, by the id of the request: they go.
	Unverified map[[8]byte][]store.ChangeSignature
	// Currency returns the currency of a service, for the limits; "" if it has none.
	Currency func(protocol.Service) string
	Now      time.Time
	Record   audit.Record // of the migration
}

// Seal seals the trusted records. Everything that grants something and cannot be verified ends:
// open invitations, waiting approvals, open change requests and stored answers.
func (o *Old) Seal(ctx context.Context, s Sealing) error {
	v := &vault{seals: s.Seals}
	o.txn.vault.Store(v)
	for _, step := range []func(Sealing) error{o.endWhatGrants, o.sealClients, o.sealAdmins, o.moveCharges, o.sealRest} {
		if err := step(s); err != nil {
			return fmt.Errorf("sealing %s: %w", o.path, unavailable(err))
		}
	}
	if err := o.txn.append(s.Record); err != nil {
		return unavailable(err)
	}
	if _, err := o.txn.exec("COMMIT"); err != nil {
		return unavailable(err)
	}
	return o.finish(ctx, s)
}

// finish drops the columns and tables that the seals replace, and writes the head.
func (o *Old) finish(ctx context.Context, s Sealing) error {
	err := o.txn.close()
	o.txn = nil
	if err != nil {
		return unavailable(err)
	}
	if err := upTo(ctx, o.db, schemaVersion); err != nil {
		return err
	}
	conn, err := o.db.Conn(ctx)
	if err != nil {
		return unavailable(err)
	}
	o.txn = newTxn(conn, new(atomic.Pointer[vault]))
	o.txn.vault.Store(&vault{seals: s.Seals})
	_, err = o.txn.exec("BEGIN IMMEDIATE")
	if err == nil {
		err = o.makeHead(ctx, s)
	}
	if err == nil {
		_, err = o.txn.exec("COMMIT")
	}
	if err != nil {
		return fmt.Errorf("sealing %s: %w", o.path, unavailable(err))
	}
	return nil
}

// makeHead writes the settings, including the schema, and the head.
func (o *Old) makeHead(ctx context.Context, s Sealing) error {
	t := o.txn
	schema, err := ours(ctx, t)
	if err != nil {
		return err
	}
	settings := map[string][]byte{schemaSetting: manifest(schema)}
	for name, value := range s.Settings {
		settings[name] = value
	}
	if _, err := t.exec(`DELETE FROM setting`); err != nil {
		return err
	}
	if err := t.putSettings(settings); err != nil {
		return err
	}
	p, err := scanPolicy(t.row(`SELECT ` + policyColumns + ` FROM policy ORDER BY version DESC LIMIT 1`))
	if err != nil {
		return err
	}
	h := head.Head{MAC: s.Seals.InForce()}
	h.Activate(p.Policy)
	return t.within(head.Found(s.Seals, h), func() error { return nil })
}

func (o *Old) endWhatGrants(s Sealing) error {
	now := store.Stamp(s.Now).UnixMicro()
	for _, q := range []struct {
		query string
		args  []any
	}{
		{`DELETE FROM attempt`, nil},
		{`UPDATE decision SET final_result = 0, final_reason = ?, final_us = ? WHERE result = 3 AND final_result IS NULL`, []any{int64(protocol.CodeExpired), now}},
		{`UPDATE invitation SET expires_us = ?1 WHERE used_us IS NULL AND (expires_us > ?1 OR expires_us IS NULL)`, []any{now}},
		{`UPDATE invitation SET request = NULL, response = NULL`, nil},
		{`UPDATE change SET state = 'failed', reason = 'ended by countersignd migrate', ended_us = ? WHERE state IN ('open', 'taken')`, []any{now}},
	} {
		if _, err := o.txn.exec(q.query, q.args...); err != nil {
			return err
		}
	}
	return nil
}

func (o *Old) sealClients(s Sealing) error {
	clients, err := o.clients()
	if err != nil {
		return err
	}
	for _, c := range clients {
		if !s.Clients[c.ID] {
			c.Status = store.Revoked
		}
		for i := range c.Windows {
			c.Windows[i].Currency = s.Currency(c.Windows[i].Service)
		}
		if err := o.txn.putClient(c.ref, c.Client); err != nil {
			return err
		}
		if err := o.txn.updateRestraint(c.ref, c.Restraint); err != nil {
			return err
		}
	}
	return err
}

func (o *Old) sealAdmins(s Sealing) error {
	rows, err := readAdmins(o.txn)
	if err != nil {
		return err
	}
	for _, r := range rows {
		id := r.Record.(store.Admin).ID
		if s.Admins[id] {
			err = o.txn.reseal(r)
		} else {
			_, err = o.txn.exec(`DELETE FROM admin WHERE id = ?`, id[:]) // it would keep all others from being read
		}
		if err != nil {
			return err
		}
	}
	return err
}

// moveCharges moves the charges into the decisions. A charge of a first approval goes into the
// second.
func (o *Old) moveCharges(s Sealing) error {
	type charge struct {
		decision int64
		store.Charge
	}
	all, err := collect(o.txn, func(sc scanner) (c charge, err error) {
		var period, start int64
		err = sc.Scan(&c.decision, &c.Service, &period, &start, &c.Amount)
		c.Period, c.At = time.Duration(period)*time.Second, time.UnixMicro(start).UTC()
		return c, err
	}, `SELECT coalesce(a.ref, c.decision), c.service, c.period_s, c.window_us, c.amount
		FROM charge c LEFT JOIN decision a ON a.first = c.decision AND a.result = 1 ORDER BY 1, 2, 3, 4`)
	if err != nil {
		return err
	}
	byDecision := map[int64][]store.Charge{}
	for _, c := range all {
		c.Currency = s.Currency(c.Service)
		byDecision[c.decision] = append(byDecision[c.decision], c.Charge)
	}
	for ref, charges := range byDecision {
		if _, err := o.txn.exec(`UPDATE decision SET charges = ? WHERE ref = ?`, packCharges(charges), ref); err != nil {
			return err
		}
	}
	return err
}

// sealRest seals the tables that are not judged record by record.
func (o *Old) sealRest(s Sealing) error {
	for id, all := range s.Unverified {
		for _, one := range all {
			const remove = `DELETE FROM change_signature WHERE signer = ? AND change = (SELECT ref FROM change WHERE id = ?)`
			if _, err := o.txn.exec(remove, one.Signer[:], id[:]); err != nil {
				return err
			}
		}
	}
	for _, read := range []func(source) ([]sealedRow, error){readKeys, readPolicies, readChanges} {
		rows, err := read(o.txn)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := o.txn.reseal(r); err != nil {
				return err
			}
		}
	}
	for _, table := range []sealedTable{deviceTable, {"invitation", "true", readInvitations}, allDecisions} {
		if err := eachRow(o.txn, table, o.txn.reseal); err != nil {
			return err
		}
	}
	return nil
}

// Put replaces the old store by the sealed one, and keeps the old one beside it.
func (o *Old) Put() (before string, err error) {
	if err := errors.Join(o.txn.close(), o.db.Close()); err != nil {
		return "", unavailable(err)
	}
	o.txn, o.db = nil, nil
	before = o.path + unsealedSuffix
	if err := o.replace(before); err != nil {
		return "", unavailable(err)
	}
	return before, nil
}

func (o *Old) replace(before string) error {
	if err := durable.SyncFile(o.path + migratingSuffix); err != nil {
		return err
	}
	// The old store is kept by another name first, and replaced at once then.
	if err := removeDatabase(before); err != nil {
		return err
	}
	if _, _, err := durable.Copy(o.path, before); err != nil {
		return err
	}
	if err := os.Rename(o.path+migratingSuffix, o.path); err != nil {
		return err
	}
	for _, suffix := range []string{"-wal", "-shm"} { // of the old one
		if err := os.Remove(o.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(filepath.Dir(o.path))
}
