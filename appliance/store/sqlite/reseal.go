package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
	"countersign/protocol"
)

// sealedTable is a table of sealed records that grows. It is read in batches, by rows above a ref.
type sealedTable struct {
	name  string
	where string // of the records in force, with ?1 for the time from which answers are kept, microseconds
	read  func(from source, after int64, most int) ([]sealedRow, error)
}

// tables lists them. The records that hang on the head are resealed at once, before these.
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
	allDecisions   = sealedTable{"decision", "true", readAllDecisions}
)

// hangingTables are the tables of the records that hang on the head, and the head's own.
var hangingTables = []string{"head", "key", "setting", "policy", "admin", "change"}

func answersFrom() int64 { return time.Now().Add(-store.AnswersKept).UnixMicro() }

// verifyBatch is the number of records that eachRow reads at once.
const verifyBatch = 1000

// eachRow reads a table from beginning to end, in batches.
func eachRow(from source, t sealedTable, do func(sealedRow) error) error {
	for after := int64(math.MinInt64); ; {
		before := after
		rows, err := t.read(from, after, verifyBatch)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			after = r.Ref
			if err := do(r); err != nil {
				return err
			}
		}
		if after <= before { // a foreign schema, in which the walk would never end
			return fmt.Errorf("rows of %s are out of order: %w", t.name, store.ErrForged)
		}
	}
}

// eachHanging reads the records that hang on the head, and change requests that have ended.
func eachHanging(from source, do func(sealedRow) error) error {
	for _, read := range readHanging {
		rows, err := read(from)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := do(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachRecord reads all records in force but the head.
func eachRecord(from source, do func(sealedRow) error) error {
	if err := eachHanging(from, do); err != nil {
		return err
	}
	for _, t := range tables {
		if err := eachRow(from, t, do); err != nil {
			return err
		}
	}
	return nil
}

func readClientRows(from source, after int64, most int, row func(clientRow, error) (sealedRow, error)) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var r clientRow
		err := s.Scan(r.values()...)
		if err == nil {
			err = r.read(from.verifier())
		}
		return row(r, err)
	}, `SELECT `+clientColumns+` FROM `+clientTables+` WHERE c.ref > ? ORDER BY c.ref LIMIT ?`, after, most)
}

func readClients(from source, after int64, most int) ([]sealedRow, error) {
	return readClientRows(from, after, most, func(r clientRow, err error) (sealedRow, error) {
		return asRow(head.Row{Ref: r.ref, Record: r.Client}, r.clientSeal, err, `UPDATE client SET seal = ? WHERE ref = ?`, r.ref)
	})
}

func readRestraints(from source, after int64, most int) ([]sealedRow, error) {
	return readClientRows(from, after, most, func(r clientRow, err error) (sealedRow, error) {
		return asRow(head.Row{Ref: r.ref, Record: r.Restraint}, r.restraintSeal, err, `UPDATE restraint SET seal = ? WHERE client = ?`, r.ref)
	})
}

func readDevices(from source, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		var r deviceRow
		err := s.Scan(append([]any{&ref}, r.values()...)...)
		return asRow(head.Row{Ref: ref, Record: r.Device}, r.seal, err, `UPDATE device SET seal = ? WHERE ref = ?`, ref)
	}, `SELECT ref, `+deviceColumns+` FROM device WHERE ref > ? ORDER BY ref LIMIT ?`, after, most)
}

func readInvitations(from source, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		i, err := scanInvitation(s, &ref)
		return asRow(head.Row{Ref: ref, Record: i.Invitation}, i.seal, err, `UPDATE invitation SET seal = ? WHERE rowid = ?`, ref)
	}, `SELECT rowid, `+invitationColumns+` FROM invitation WHERE rowid > ? ORDER BY rowid LIMIT ?`, after, most)
}

func readDecisions(from source, after int64, most int) ([]sealedRow, error) {
	return readDecisionsSince(from, after, most, answersFrom())
}

func readAllDecisions(from source, after int64, most int) ([]sealedRow, error) {
	return readDecisionsSince(from, after, most, math.MinInt64)
}

// readDecisionsSince reads the decisions from a time on, in microseconds, and those that wait.
func readDecisionsSince(from source, after int64, most int, since int64) ([]sealedRow, error) {
	return collect(from, scanDecision(from), `SELECT s.ref, c.id, `+decisionColumns+` FROM decision s JOIN client c ON c.ref = s.client
		WHERE s.ref > ? AND (s.decided_us >= ? OR s.result = 3 AND s.final_result IS NULL) ORDER BY s.ref LIMIT ?`,
		after, since, most)
}

// scanDecision scans ref, the client's id and the decisionColumns.
func scanDecision(from source) func(scanner) (sealedRow, error) {
	return func(s scanner) (sealedRow, error) {
		var ref int64
		var id protocol.ClientID
		var r keptRow
		err := s.Scan(append([]any{&ref, fixed(id[:])}, r.dest()...)...)
		if err == nil {
			err = r.read(from.verifier(), id)
		}
		return asRow(head.Row{Ref: ref, Record: r.Kept}, r.seal, err, `UPDATE decision SET seal = ? WHERE ref = ?`, ref)
	}
}

// readAttempts reads the attempts of so many clients: recent ones, and those under a counter that
// may still be spent, because the next attempt is judged by all of them.
func readAttempts(from source, after int64, most int) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var ref int64
		var counter uint32
		var b store.Begun
		var seal []byte
		err := s.Scan(&ref, fixed(b.Client[:]), &counter, &b.Attempt, fixed(b.Serial[4:]), fixed(b.M3[:]), &b.Answered, &b.TriesLeft, stamp{&b.At}, &seal)
		binary.BigEndian.PutUint32(b.Serial[:4], counter)
		return asRow(head.Row{Ref: ref, Record: b}, seal, err,
			`UPDATE attempt SET seal = ? WHERE client = ? AND counter = ? AND attempt = ?`, ref, counter, b.Attempt)
	}, `SELECT a.client, c.id, a.counter, a.attempt, a.random, a.m3, a.answered, a.tries_left, a.begun_us, a.seal
		FROM attempt a JOIN client c ON c.ref = a.client JOIN restraint r ON r.client = a.client
		WHERE (a.begun_us >= ?3 OR a.counter > r.highest) AND a.client > ?1 AND a.client <= (
			SELECT max(client) FROM (SELECT DISTINCT b.client FROM attempt b JOIN restraint q ON q.client = b.client
				WHERE b.client > ?1 AND (b.begun_us >= ?3 OR b.counter > q.highest) ORDER BY b.client LIMIT ?2))
		ORDER BY a.client`, after, most, answersFrom())
}

// Reseal implements [store.Sealing].
func (s *database) Reseal(ctx context.Context, after store.Cursor, most int, rec func(int) audit.Record) (next store.Cursor, n int, done bool, err error) {
	var did struct { // by the writer, which may continue when ctx ends
		next store.Cursor
		n    int
	}
	err = s.write(ctx, "resealing records", func(t *txn) (err error) {
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

// resealTable reseals one batch of a table.
func (t *txn) resealTable(after store.Cursor, most int) (next store.Cursor, n int, err error) {
	if after.Table > len(tables) {
		return store.Cursor{Table: len(tables) + 1}, 0, nil
	}
	rows, err := tables[after.Table-1].read(t, after.Ref, most)
	if err != nil {
		return after, 0, err
	}
	for _, r := range rows {
		after.Ref = r.Ref
		if !t.stale(r) {
			continue
		}
		if err := t.reseal(r); err != nil {
			return after, n, err
		}
		n++
	}
	if len(rows) == 0 {
		return store.Cursor{Table: after.Table + 1, Ref: math.MinInt64}, n, nil
	}
	return after, n, nil
}

// stale reports whether a record fits a seal of another version than the one in force.
func (t *txn) stale(r sealedRow) bool {
	seals := t.verifier().seals
	return r.Seal.Version != seals.InForce() && r.Err == nil && seals.Check(r.Record, r.Seal) == nil
}

// reseal gives a record a seal of the version in force.
func (t *txn) reseal(r sealedRow) error {
	if r.Err != nil {
		return r.Err
	}
	seal, err := t.seal(r.Record)
	if err == nil {
		_, err = t.exec(r.put, append([]any{seal}, r.args...)...)
	}
	return err
}

// resealHanging reseals the records that hang on the head, and the head. Records that do not fit
// stay as they are; if one hangs on the head all the same, the head will not move.
func (t *txn) resealHanging() (n int, err error) {
	var stale []sealedRow
	err = eachHanging(t, func(r sealedRow) error {
		if t.stale(r) {
			stale = append(stale, r)
		}
		return nil
	})
	if err != nil || len(stale) == 0 {
		return 0, err
	}
	return len(stale), t.move(head.Kinds(), func(*head.Head) error {
		for _, r := range stale {
			if err := t.reseal(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// Under implements [store.Sealing].
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
		if under > 0 && version != v.seals.InForce() { // a row that only says so keeps no key in force
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
	switch h, err := v.head(from, store.Mark{}); {
	case err == nil && h.MAC == version:
		return true, nil
	case err != nil && !errors.Is(err, store.ErrForged) && !errors.Is(err, store.ErrNotFound):
		return false, err
	}
	err := eachRecord(from, func(r sealedRow) error {
		if r.Err == nil && r.Seal.Version == version && v.seals.Check(r.Record, r.Seal) == nil {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return true, nil
	}
	return false, err
}

// Verify implements [store.Sealing].
func (s *database) Verify(ctx context.Context) (records uint64, forged []error, err error) {
	look := func(err error) error { // collects forged records
		if errors.Is(err, store.ErrForged) {
			forged = append(forged, err)
			return nil
		}
		return err
	}
	err = s.read(ctx, "verifying the seals", func(from snapshot, v *vault) error {
		from.known = nil // every row is read
		h, err := v.head(from, from.floor)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err := look(err); err != nil {
			return err
		}
		for _, kind := range head.Kinds() {
			all, _, err := v.hung(from, h, kind)
			if err := look(err); err != nil {
				return err
			}
			if kind == head.Settings && all != nil {
				if err := look(v.verifySchema(from, all)); err != nil {
					return err
				}
			}
		}
		if err := v.strays(from, look); err != nil {
			return err
		}
		records = 1 // the head
		return eachRecord(from, func(r sealedRow) error {
			records++
			if r.Err == nil {
				r.Err = v.seals.Check(r.Record, r.Seal)
			}
			return look(r.Err)
		})
	})
	return records, forged, err
}

// strays looks at the rows that refer to no other, which a query with a join does not return.
func (v *vault) strays(from snapshot, look func(error) error) error {
	type stray struct {
		table, parent string
		ref           int64
	}
	all, err := collect(from, func(s scanner) (r stray, err error) {
		err = s.Scan(&r.table, &r.ref, &r.parent)
		return r, err
	}, `SELECT "table", coalesce(rowid, 0), parent FROM pragma_foreign_key_check`)
	if err != nil {
		return err
	}
	for _, r := range all {
		if err := look(v.seals.Report(fmt.Sprintf("row %d of table %q belongs to no row of %q", r.ref, r.table, r.parent))); err != nil {
			return err
		}
	}
	return nil
}
