package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// sealedRow is a record as it was read, with the seal that it has, and how to write
// another.
type sealedRow struct {
	ref    int64 // place of the row in its table
	record store.Sealed
	seal   []byte
	err    error // it could not be read as a record
	put    func(t *txn, seal []byte) error
}

// unless makes one that cannot be read a row which is nobody's, beside those that can.
func (r sealedRow) unless(err error) (sealedRow, error) {
	if errors.Is(err, store.ErrForged) {
		r.err, err = err, nil
	}
	return r, err
}

// sealedTable is a table whose records are brought to another version of mac in batches.
type sealedTable struct {
	name  string
	where string // of the records in force, with ?1 for the time from which answers are kept, microseconds
	read  func(from source, v *vault, after int64, most int) ([]sealedRow, error)
}

// tables are those that grow. What hangs on the head is brought over at once, before.
var tables = []sealedTable{
	clientTable,
	restraintTable,
	deviceTable,
	{"invitation", "true", readInvitations},
	{"decision", "decided_us >= ?1 OR result = 3 AND final_result IS NULL", readDecisions},
	{"attempt", "begun_us >= ?1 OR counter > (SELECT highest FROM restraint r WHERE r.client = attempt.client)", readAttempts},
}

var (
	clientTable    = sealedTable{"client", "true", readClients}
	restraintTable = sealedTable{"restraint", "true", readRestraints}
	deviceTable    = sealedTable{"device", "true", readDevices}
)

// hangingTables are those whose records hang on the head, and the head's own.
var hangingTables = []string{"head", "key", "setting", "policy", "admin", "change"}

func answersFrom() int64 { return time.Now().Add(-store.AnswersKept).UnixMicro() }

// put returns how the seal of a row is written.
func put(query string, args ...any) func(*txn, []byte) error {
	return func(t *txn, seal []byte) error {
		_, err := t.exec(query, append([]any{seal}, args...)...)
		return err
	}
}

func readClients(from source, v *vault, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		ref, r, err := scanClientRow(s, v)
		return sealedRow{ref, &r.Client, r.clientSeal, nil, put(`UPDATE client SET seal = ? WHERE ref = ?`, ref)}.unless(err)
	}, `SELECT c.ref, `+clientColumns+` FROM `+clientTables+` WHERE c.ref > ? ORDER BY c.ref LIMIT ?`, after, most)
}

func readRestraints(from source, v *vault, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		ref, r, err := scanClientRow(s, v)
		return sealedRow{ref, &r.Restraint, r.restraintSeal, nil, put(`UPDATE restraint SET seal = ? WHERE client = ?`, ref)}.unless(err)
	}, `SELECT c.ref, `+clientColumns+` FROM `+clientTables+` WHERE c.ref > ? ORDER BY c.ref LIMIT ?`, after, most)
}

func scanClientRow(s scanner, v *vault) (ref int64, r *clientRow, err error) {
	r = &clientRow{}
	if err = s.Scan(append([]any{&ref}, r.dest()...)...); err == nil {
		err = r.read(v)
	}
	return ref, r, err
}

func readDevices(from source, _ *vault, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		var r deviceRow
		err := s.Scan(append([]any{&ref}, r.dest()...)...)
		return sealedRow{ref, r.Device, r.seal, nil, put(`UPDATE device SET seal = ? WHERE ref = ?`, ref)}.unless(err)
	}, `SELECT d.ref, `+deviceColumns+` FROM device d WHERE d.ref > ? ORDER BY d.ref LIMIT ?`, after, most)
}

func readInvitations(from source, _ *vault, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		i, err := scanInvitation(withFirst{s, &ref})
		return sealedRow{ref, i.Invitation, i.seal, nil, put(`UPDATE invitation SET seal = ? WHERE rowid = ?`, ref)}.unless(err)
	}, `SELECT rowid, `+invitationColumns+` FROM invitation WHERE rowid > ? ORDER BY rowid LIMIT ?`, after, most)
}

// withFirst scans one column before the others.
type withFirst struct {
	scanner
	first any
}

func (w withFirst) Scan(dest ...any) error { return w.scanner.Scan(append([]any{w.first}, dest...)...) }

func readDecisions(from source, v *vault, after int64, most int) ([]sealedRow, error) {
	return readDecisionsSince(from, v, after, most, answersFrom())
}

func readAllDecisions(from source, v *vault, after int64, most int) ([]sealedRow, error) {
	return readDecisionsSince(from, v, after, most, math.MinInt64)
}

// readDecisionsSince reads those from a time on, microseconds, and those that wait.
func readDecisionsSince(from source, v *vault, after int64, most int, since int64) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		var id protocol.ClientID
		r := &keptRow{}
		err := s.Scan(append([]any{&ref, fixed(id[:])}, r.dest()...)...)
		if err == nil {
			err = r.read(v, id)
		}
		return sealedRow{ref, &r.Kept, r.seal, nil, put(`UPDATE decision SET seal = ? WHERE ref = ?`, ref)}.unless(err)
	}, `SELECT s.ref, c.id, `+decisionColumns+` FROM decision s JOIN client c ON c.ref = s.client
		WHERE s.ref > ? AND (s.decided_us >= ? OR s.result = 3 AND s.final_result IS NULL) ORDER BY s.ref LIMIT ?`,
		after, since, most)
}

// readAttempts reads those of so many clients: the recent, and those under a counter that may
// still be spent, all of which the next one is judged by.
func readAttempts(from source, _ *vault, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		var counter uint32
		var b store.Begun
		var seal []byte
		err := s.Scan(&ref, fixed(b.Client[:]), &counter, &b.Attempt, fixed(b.Serial[4:]), fixed(b.M3[:]), &b.Answered, &b.TriesLeft, stamp{&b.At}, &seal)
		binary.BigEndian.PutUint32(b.Serial[:4], counter)
		return sealedRow{ref, b, seal, nil, put(`UPDATE attempt SET seal = ? WHERE client = ? AND counter = ? AND attempt = ?`, ref, int64(counter), int64(b.Attempt))}.unless(err)
	}, `SELECT a.client, c.id, a.counter, a.attempt, a.random, a.m3, a.answered, a.tries_left, a.begun_us, a.seal
		FROM attempt a JOIN client c ON c.ref = a.client JOIN restraint r ON r.client = a.client
		WHERE (a.begun_us >= ?3 OR a.counter > r.highest) AND a.client > ?1 AND a.client <= (
			SELECT max(client) FROM (SELECT DISTINCT b.client FROM attempt b JOIN restraint q ON q.client = b.client
				WHERE b.client > ?1 AND (b.begun_us >= ?3 OR b.counter > q.highest) ORDER BY b.client LIMIT ?2))
		ORDER BY a.client`, after, most, answersFrom())
}

// Reseal implements [store.Store].
func (s *database) Reseal(ctx context.Context, after store.Cursor, most int, rec func(int) audit.Record) (next store.Cursor, n int, done bool, err error) {
	var did struct { // by the writer, which may go on when ctx ends
		next store.Cursor
		n    int
	}
	err = s.write(ctx, "sealing records anew", func(t *txn) (err error) {
		if after == (store.Cursor{}) {
			did.next = store.Cursor{Table: 1, Ref: math.MinInt64}
			did.n, err = t.resealHanging()
		} else {
			did.next, did.n, err = t.resealTable(after, most)
		}
		if err != nil || did.n == 0 {
			return err
		}
		return t.append(rec(did.n))
	})
	if err != nil {
		return after, 0, false, err
	}
	return did.next, did.n, did.next.Table > len(tables), nil
}

// resealTable brings one batch of a table over.
func (t *txn) resealTable(after store.Cursor, most int) (next store.Cursor, n int, err error) {
	v, err := t.unsealed()
	if err != nil || after.Table > len(tables) {
		return store.Cursor{Table: len(tables) + 1}, 0, err
	}
	rows, err := tables[after.Table-1].read(t, v, after.Ref, most)
	if err != nil {
		return after, 0, err
	}
	for _, r := range rows {
		after.Ref = r.ref
		brought, err := t.reseal(v, r)
		if err != nil {
			return after, n, err
		}
		if brought {
			n++
		}
	}
	if len(rows) == 0 {
		return store.Cursor{Table: after.Table + 1, Ref: math.MinInt64}, n, nil
	}
	return after, n, nil
}

// reseal brings one record to the version in force, if it is under another and fits.
func (t *txn) reseal(v *vault, r sealedRow) (bool, error) {
	if r.err != nil || store.ParseSeal(r.seal).Version == v.seals.InForce() || v.check(r.record, r.seal) != nil {
		return false, nil // the alarm has heard of it
	}
	return true, t.sealAgain(r)
}

// sealAgain gives a record that was read a seal under the version in force.
func (t *txn) sealAgain(r sealedRow) error {
	if r.err != nil {
		return r.err
	}
	seal, err := t.seal(r.record)
	if err != nil {
		return err
	}
	return r.put(t, seal)
}

// resealHanging brings over all that hangs on the head, and the head. What does not fit
// stays as it is.
func (t *txn) resealHanging() (n int, err error) {
	v, err := t.unsealed()
	if err != nil {
		return 0, err
	}
	rows, err := hangingRows(t, v)
	if err != nil {
		return 0, err
	}
	var stale []sealedRow
	for _, r := range rows {
		if store.ParseSeal(r.seal).Version == v.seals.InForce() {
			continue
		}
		if r.err == nil {
			r.err = v.check(r.record, r.seal)
		}
		if r.err != nil { // if it hangs on the head all the same, the head will not move
			continue
		}
		stale = append(stale, r)
	}
	if len(stale) == 0 {
		return 0, nil
	}
	return len(stale), t.move(store.AllHanging(), func(*store.Head) error {
		for _, r := range stale {
			if err := t.sealAgain(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// hangingRows reads all that hangs on the head, change requests that have ended among it.
func hangingRows(from source, v *vault) (all []sealedRow, err error) {
	for _, read := range readHanging {
		rows, err := read(from, v)
		if err != nil {
			return nil, err
		}
		all = append(all, rows...)
	}
	return all, nil
}

func readOpenSet(from source, v *vault) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var body, seal []byte
		if err := s.Scan(&body, &seal); err != nil {
			return sealedRow{}.unless(err)
		}
		o, err := v.parseOpenSet(body)
		return sealedRow{0, o, seal, nil, put(`UPDATE head SET seal = ? WHERE name = 'invitations'`)}.unless(err)
	}, `SELECT body, seal FROM head WHERE name = 'invitations'`)
}

func readKeys(from source, _ *vault) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		k, err := scanKey(s)
		return sealedRow{0, k.Key, k.seal, nil, put(`UPDATE key SET seal = ? WHERE name = ? AND version = ?`, k.Name, int64(k.Version))}.unless(err)
	}, `SELECT `+keyColumns+` FROM key NOT INDEXED`)
}

func readSettings(from source, _ *vault) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var one store.Setting
		var seal []byte
		err := s.Scan(&one.Name, &one.Value, &seal)
		return sealedRow{0, one, seal, nil, put(`UPDATE setting SET seal = ? WHERE name = ?`, one.Name)}.unless(err)
	}, `SELECT name, value, seal FROM setting NOT INDEXED`)
}

func readPolicies(from source, _ *vault) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		p, err := scanPolicy(s)
		return sealedRow{0, p.Policy, p.seal, nil, put(`UPDATE policy SET seal = ? WHERE version = ?`, int64(p.Version))}.unless(err)
	}, `SELECT `+policyColumns+` FROM policy NOT INDEXED`)
}

func readAdmins(from source, _ *vault) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		a, err := scanAdmin(s)
		return sealedRow{0, a.Admin, a.seal, nil, put(`UPDATE admin SET seal = ? WHERE id = ?`, a.ID[:])}.unless(err)
	}, `SELECT `+adminColumns+` FROM admin NOT INDEXED`)
}

func readChangeRows(from source, _ *vault) ([]sealedRow, error) {
	all, err := collect(from, func(s scanner) (sealedRow, error) {
		c, err := scanChange(s)
		return sealedRow{c.ref, c.Change, c.seal, nil, put(`UPDATE change SET seal = ? WHERE ref = ?`, c.ref)}.unless(err)
	}, `SELECT `+changeColumns+` FROM change NOT INDEXED`)
	for i, r := range all {
		if err != nil || r.err != nil {
			continue
		}
		c := r.record.(store.Change)
		c.Signatures, err = collect(from, scanSignature, changeSignatures, r.ref)
		all[i].record = c
		all[i], err = all[i].unless(err)
	}
	return all, err
}

// Under implements [store.Store].
func (s *database) Under(ctx context.Context, version uint64) (total, under uint64, err error) {
	prefix := binary.BigEndian.AppendUint64(nil, version)
	count := func(from source, table, where string, args ...any) error {
		var all, those uint64
		err := from.row(fmt.Sprintf(`SELECT count(*), count(*) FILTER (WHERE substr(seal, 1, 8) = ?2) FROM %s WHERE %s`, table, where), args...).Scan(&all, &those)
		total, under = total+all, under+those
		return err
	}
	err = s.read(ctx, "counting seals", func(from snapshot, v *vault) error {
		total, under = 0, 0
		for _, name := range hangingTables {
			if err := count(from, name, "true", nil, prefix); err != nil {
				return err
			}
		}
		for _, t := range tables {
			if err := count(from, t.name, t.where, answersFrom(), prefix); err != nil {
				return err
			}
		}
		if under > 0 && version != v.seals.InForce() { // what only says so keeps no key in force
			some, err := v.anyUnder(from, version)
			if err != nil || !some {
				under = 0
			}
			return err
		}
		return nil
	})
	return total, under, err
}

// errEnough ends a walk over the records.
var errEnough = errors.New("enough was read")

// anyUnder reports whether a record in force fits a seal of this version.
func (v *vault) anyUnder(from source, version uint64) (bool, error) {
	look := func(r sealedRow) error {
		if r.err == nil && store.ParseSeal(r.seal).Version == version && v.check(r.record, r.seal) == nil {
			return errEnough
		}
		return nil
	}
	switch h, err := v.head(from, store.Mark{}); {
	case err == nil && h.MAC == version:
		return true, nil
	case err != nil && !errors.Is(err, store.ErrForged) && !errors.Is(err, sql.ErrNoRows):
		return false, err
	}
	rows, err := hangingRows(from, v)
	for _, r := range rows {
		err = cmp.Or(err, look(r))
	}
	for _, t := range tables {
		if err == nil {
			err = eachRow(from, v, t, look)
		}
	}
	if errors.Is(err, errEnough) {
		return true, nil
	}
	return false, err
}

// verifyBatch is how many records Verify reads at once.
const verifyBatch = 1000

// Verify implements [store.Store].
func (s *database) Verify(ctx context.Context) (records uint64, forged []error, err error) {
	err = s.read(ctx, "verifying the seals", func(from snapshot, v *vault) error {
		look := func(err error) error {
			if errors.Is(err, store.ErrForged) {
				forged = append(forged, err)
				return nil
			}
			return err
		}
		h, err := v.head(from, from.floor)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err := look(err); err != nil {
			return err
		}
		settings, _, err := v.hanging(from, store.HangingSettings)
		if err != nil {
			return look(err)
		}
		if err := look(v.verifySchema(from, settings)); err != nil {
			return err
		}
		for _, kind := range store.AllHanging() {
			_, _, err := v.hangs(from, h, kind)
			if err := look(err); err != nil {
				return err
			}
		}
		if err := v.strays(from, look); err != nil {
			return err
		}
		records = 1 // the head
		row := func(r sealedRow) error {
			records++
			if r.err == nil {
				r.err = v.check(r.record, r.seal)
			}
			return look(r.err)
		}
		rows, err := hangingRows(from, v)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := row(r); err != nil {
				return err
			}
		}
		for _, table := range tables {
			if err := eachRow(from, v, table, row); err != nil {
				return err
			}
		}
		return nil
	})
	return records, forged, err
}

// strays looks at the rows that refer to no other, which no listing that joins would find.
func (v *vault) strays(from snapshot, look func(error) error) error {
	rows, err := from.rows(`SELECT "table", coalesce(rowid, 0), parent FROM pragma_foreign_key_check`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var table, parent string
		var ref int64
		if err := rows.Scan(&table, &ref, &parent); err != nil {
			return err
		}
		if err := look(v.seals.Report(fmt.Sprintf("row %d of table %q belongs to no row of %q", ref, table, parent))); err != nil {
			return err
		}
	}
	return rows.Err()
}
