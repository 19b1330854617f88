package sqlite

import (
	"context"
	"crypto/sha256"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

const policyColumns = `version, document, activated_us, change, seal`

// policyRow is where the policyColumns are scanned to.
type policyRow struct {
	store.Policy
	seal []byte
}

func scanPolicy(s scanner) (p policyRow, err error) {
	err = s.Scan(&p.Version, &p.Document, stamp{&p.ActivatedAt}, fixed(p.Change[:]), &p.seal)
	return p, err
}

// ActivePolicy implements [store.Store].
func (s *database) ActivePolicy(ctx context.Context) (store.Policy, error) {
	return s.policy(ctx, func(h store.Head) uint64 { return h.Policy })
}

// PolicyAt implements [store.Store].
func (s *database) PolicyAt(ctx context.Context, version uint64) (store.Policy, error) {
	return s.policy(ctx, func(store.Head) uint64 { return version })
}

func (s *database) policy(ctx context.Context, which func(store.Head) uint64) (p store.Policy, err error) {
	err = s.onHead(ctx, "reading policy", store.HangingPolicies, func(h store.Head, v *vault, all hanging, _ []sealedRow) (err error) {
		p, err = find(all, store.Policy{Version: which(h)})
		if err == nil && p.Version == h.Policy && hashOf(p.Document) != h.PolicyHash {
			err = v.seals.Report("the active policy is not the one of the head")
		}
		return err
	})
	if err != nil {
		return store.Policy{}, err
	}
	return p, nil
}

// AddPolicy implements [store.Store].
func (s *database) AddPolicy(ctx context.Context, p store.Policy, rec audit.Record) error {
	return s.write(ctx, "adding policy", func(t *txn) error {
		err := t.move([]store.Hanging{store.HangingPolicies}, func(h *store.Head) error {
			if p.Version != h.Policy+1 {
				return store.ErrConflict
			}
			return t.insertPolicy(h, p)
		})
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

func hashOf(document []byte) [sha256.Size]byte { return sha256.Sum256(document) }

// insertPolicy makes a policy the active one.
func (t *txn) insertPolicy(h *store.Head, p store.Policy) error {
	seal, err := t.seal(p)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO policy (`+policyColumns+`) VALUES (?, ?, ?, ?, ?)`,
		int64(p.Version), blob(p.Document), usec(p.ActivatedAt), idOrNull(p.Change), seal)
	h.Policy, h.PolicyHash = p.Version, hashOf(p.Document)
	return err
}

// Settings implements [store.Store].
func (s *database) Settings(ctx context.Context) (map[string][]byte, error) {
	all, err := listHanging[store.Setting](ctx, s, "reading settings", store.HangingSettings)
	if err != nil {
		return nil, err
	}
	m := make(map[string][]byte, len(all))
	for _, one := range all {
		if one.Name != schemaSetting { // it is the driver's own
			m[one.Name] = one.Value
		}
	}
	return m, nil
}

func (t *txn) append(rec audit.Record) error {
	_, err := t.exec(`INSERT INTO record (at_us, kind, subject, salt, body) VALUES (?, ?, ?, ?, ?)`,
		rec.At.UnixMicro(), rec.Kind, rec.Subject, rec.Salt[:], rec.Body)
	return err
}

// Append implements [store.Store].
func (s *database) Append(ctx context.Context, rec audit.Record) error {
	return s.write(ctx, "appending record", func(t *txn) error { return t.append(rec) })
}

// Records implements [store.Store].
func (s *database) Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error) {
	q := query{doing: "reading records", sql: listRecords, args: []any{int64(after), max(limit, 0)}}
	return list(ctx, s.r, q, scanRecord)
}

const listRecords = `SELECT sequence, at_us, kind, subject, salt, body FROM record WHERE sequence > ? ORDER BY sequence LIMIT ?`

func scanRecord(row scanner) (r audit.Record, err error) {
	err = row.Scan(&r.Sequence, stamp{&r.At}, &r.Kind, &r.Subject, fixed(r.Salt[:]), &r.Body)
	return r, err
}

// Tally implements [store.Store].
func (s *database) Tally(ctx context.Context) (n store.Tally, err error) {
	err = s.r.row(ctx, `SELECT (SELECT count(*) FROM client), (SELECT count(*) FROM device),
			(SELECT count(*) FROM invitation), (SELECT count(*) FROM decision),
			(SELECT count(*) FROM record), (SELECT count(*) FROM key)`).
		Scan(&n.Clients, &n.Devices, &n.Invitations, &n.Decisions, &n.Records, &n.Keys)
	return n, readError(ctx, "counting", err)
}
