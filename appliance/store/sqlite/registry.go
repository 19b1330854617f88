package sqlite

import (
	"context"

	"countersign/appliance/store"
)

// ActivePolicy implements [store.Policies].
func (s *Store) ActivePolicy(ctx context.Context) (p store.Policy, err error) {
	p, err = scanPolicy(s.r.row(ctx, `SELECT `+policyColumns+` FROM policy ORDER BY version DESC LIMIT 1`))
	return p, readError(ctx, "reading policy", err)
}

// PolicyAt implements [store.Policies].
func (s *Store) PolicyAt(ctx context.Context, version uint64) (p store.Policy, err error) {
	p, err = scanPolicy(s.r.row(ctx, `SELECT `+policyColumns+` FROM policy WHERE version = ?`, int64(version)))
	return p, readError(ctx, "reading policy", err)
}

const policyColumns = `version, document, activated_us, change`

func scanPolicy(s scanner) (p store.Policy, err error) {
	err = s.Scan(&p.Version, &p.Document, stamp{&p.ActivatedAt}, fixed(p.Change[:]))
	return p, err
}

// AddPolicy implements [store.Policies].
func (s *Store) AddPolicy(ctx context.Context, p store.Policy, rec store.Record) error {
	return s.write(ctx, "adding policy", func(t *txn) error {
		var active uint64
		if err := t.row(`SELECT coalesce(max(version), 0) FROM policy`).Scan(&active); err != nil {
			return err
		}
		if p.Version != active+1 {
			return store.ErrConflict
		}
		_, err := t.exec(`INSERT INTO policy (`+policyColumns+`) VALUES (?, ?, ?, ?)`,
			int64(p.Version), blob(p.Document), usec(p.ActivatedAt), behind(p.Change))
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// Settings implements [store.Keys].
func (s *Store) Settings(ctx context.Context) (map[string][]byte, error) {
	type setting struct {
		name  string
		value []byte
	}
	q := query{doing: "reading settings", sql: `SELECT name, value FROM setting`}
	all, err := list(ctx, s.r, q, func(row scanner) (v setting, err error) {
		err = row.Scan(&v.name, &v.value)
		return v, err
	})
	if err != nil {
		return nil, err
	}
	m := make(map[string][]byte, len(all))
	for _, v := range all {
		m[v.name] = v.value
	}
	return m, nil
}

func (t *txn) append(rec store.Record) error {
	_, err := t.exec(`INSERT INTO record (at_us, kind, subject, salt, body) VALUES (?, ?, ?, ?, ?)`,
		rec.At.UnixMicro(), rec.Kind, rec.Subject, rec.Salt[:], rec.Body)
	return err
}

// Append implements [store.Audit].
func (s *Store) Append(ctx context.Context, rec store.Record) error {
	return s.write(ctx, "appending record", func(t *txn) error { return t.append(rec) })
}

// Records implements [store.Audit].
func (s *Store) Records(ctx context.Context, after uint64, limit int) ([]store.Record, error) {
	q := query{
		doing: "reading records",
		sql:   `SELECT sequence, at_us, kind, subject, salt, body FROM record WHERE sequence > ? ORDER BY sequence LIMIT ?`,
		args:  []any{int64(after), max(limit, 0)},
	}
	return list(ctx, s.r, q, func(row scanner) (r store.Record, err error) {
		err = row.Scan(&r.Sequence, stamp{&r.At}, &r.Kind, &r.Subject, fixed(r.Salt[:]), &r.Body)
		return r, err
	})
}

// Tally implements [store.Audit].
func (s *Store) Tally(ctx context.Context) (n store.Tally, err error) {
	err = s.r.row(ctx, `SELECT (SELECT count(*) FROM client), (SELECT count(*) FROM device),
			(SELECT count(*) FROM invitation), (SELECT count(*) FROM decision),
			(SELECT count(*) FROM record), (SELECT count(*) FROM key)`).
		Scan(&n.Clients, &n.Devices, &n.Invitations, &n.Decisions, &n.Records, &n.Keys)
	return n, readError(ctx, "counting", err)
}
