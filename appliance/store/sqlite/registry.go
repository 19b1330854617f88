package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
)

// keyRow is a key with the seal of its row.
type keyRow struct {
	store.Key
	seal []byte
}

const keyColumns = `name, version, id, public, not_before_us, not_after_us, cert, created_us,
	root, origin, tokens, revision, activated_us, retired_us, suspended_us, compromised_us, destroyed_us,
	sealed, sealed_for, seal`

// values lists the keyColumns, to be scanned or bound.
func (k *keyRow) values() []any {
	return []any{
		&k.Name, &k.Version, fixed(k.ID[:]),
		optional{&k.Public},
		stamp{&k.NotBefore},
		stamp{&k.NotAfter},
		optional{&k.Cert},
		stamp{&k.CreatedAt},
		&k.Root, &k.Origin,
		texts{&k.Tokens},
		&k.Revision,
		stamp{&k.ActivatedAt},
		stamp{&k.RetiredAt},
		stamp{&k.SuspendedAt},
		stamp{&k.CompromisedAt},
		stamp{&k.DestroyedAt},
		optional{&k.Sealed},
		optional{&k.SealedFor},
		&k.seal,
	}
}

func scanKey(s scanner) (k keyRow, err error) {
	err = s.Scan(k.values()...)
	return k, err
}

func readKeys(from source) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		k, err := scanKey(s)
		return asRow(head.Row{Record: k.Key}, k.seal, err, `UPDATE key SET seal = ? WHERE name = ? AND version = ?`, k.Name, k.Version)
	}, `SELECT `+keyColumns+` FROM key NOT INDEXED`)
}

// ListKeys implements [store.Keys].
func (s *database) ListKeys(ctx context.Context) ([]store.Key, error) {
	all, err := listHanging[store.Key](ctx, s, "listing keys", head.Keys)
	slices.SortFunc(all, func(a, b store.Key) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	return all, err
}

var insertKey = insertInto("key", keyColumns)

func (t *txn) insertKey(k store.Key) (err error) {
	row := keyRow{Key: k}
	if row.seal, err = t.seal(k); err != nil {
		return err
	}
	_, err = t.exec(insertKey, row.values()...)
	return err
}

// updateKey writes the columns that may change over the revision before. The sealed copy of a
// destroyed key is erased.
func (t *txn) updateKey(k store.Key) error {
	old, err := head.Find(t.moving.Records(head.Keys), k)
	if err != nil {
		return err
	}
	if old.Revision != k.Revision-1 {
		return store.ErrConflict
	}
	k.ID, k.Public, k.CreatedAt, k.Sealed, k.SealedFor = old.ID, old.Public, old.CreatedAt, old.Sealed, old.SealedFor
	if !k.DestroyedAt.IsZero() {
		k.Sealed, k.SealedFor = nil, nil
	}
	_, err = t.put(k, `UPDATE key SET seal = ?, not_before_us = ?, not_after_us = ?, cert = ?, root = ?, origin = ?, tokens = ?,
		revision = ?, activated_us = ?, retired_us = ?, suspended_us = ?, compromised_us = ?, destroyed_us = ?,
		sealed = ?, sealed_for = ? WHERE name = ? AND version = ?`,
		stamp{&k.NotBefore}, stamp{&k.NotAfter}, optional{&k.Cert}, k.Root, string(k.Origin), texts{&k.Tokens}, k.Revision,
		stamp{&k.ActivatedAt}, stamp{&k.RetiredAt}, stamp{&k.SuspendedAt}, stamp{&k.CompromisedAt}, stamp{&k.DestroyedAt},
		optional{&k.Sealed}, optional{&k.SealedFor}, k.Name, k.Version)
	return err
}

// AddTrust implements [store.Keys].
func (s *database) AddTrust(ctx context.Context, trust store.Trust, rec audit.Record) error {
	return s.change(ctx, "adding trust", rec, func(t *txn) error {
		if _, err := t.head(); !errors.Is(err, store.ErrNotFound) {
			return cmp.Or(err, store.ErrExists)
		}
		seals := t.verifier().seals
		m := head.Found(seals, head.Head{MAC: seals.InForce()})
		return t.within(m, func() error { return t.addTrust(ctx, &m.Head, trust) })
	})
}

func (t *txn) addTrust(ctx context.Context, h *head.Head, trust store.Trust) error {
	if err := t.changeKeys(store.KeyChange{Add: trust.Keys}); err != nil {
		return err
	}
	schema, err := ours(ctx, t)
	if err != nil {
		return err
	}
	t.verifier().schema = schema
	settings := map[string][]byte{}
	maps.Copy(settings, trust.Settings)
	settings[schemaSetting] = manifest(schema)
	if err := t.putSettings(settings); err != nil || trust.Policy.Version == 0 {
		return err
	}
	return t.insertPolicy(h, trust.Policy)
}

// ChangeKeys implements [store.Keys].
func (s *database) ChangeKeys(ctx context.Context, c store.KeyChange, rec audit.Record) error {
	return s.change(ctx, "changing keys", rec, func(t *txn) error {
		return t.move([]head.Kind{head.Keys, head.Settings}, func(h *head.Head) error {
			h.MAC = max(h.MAC, c.MAC)
			return t.changeKeys(c)
		})
	})
}

func (t *txn) changeKeys(c store.KeyChange) error {
	for _, k := range c.Add {
		if err := t.insertKey(k); err != nil {
			return err
		}
	}
	for _, k := range c.Update {
		if err := t.updateKey(k); err != nil {
			return err
		}
	}
	return t.putSettings(c.Settings)
}

func (t *txn) putSettings(settings map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := settings[name]
		_, err := t.put(store.Setting{Name: name, Value: value},
			`INSERT INTO setting (seal, name, value) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET value = ?3, seal = ?1`,
			name, optional{&value})
		if err != nil {
			return err
		}
	}
	return nil
}

func readSettings(from source) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var one store.Setting
		var seal []byte
		err := s.Scan(&one.Name, &one.Value, &seal)
		return asRow(head.Row{Record: one}, seal, err, `UPDATE setting SET seal = ? WHERE name = ?`, one.Name)
	}, `SELECT name, value, seal FROM setting NOT INDEXED`)
}

// Settings implements [store.Keys].
func (s *database) Settings(ctx context.Context) (map[string][]byte, error) {
	all, err := listHanging[store.Setting](ctx, s, "reading settings", head.Settings)
	if err != nil {
		return nil, err
	}
	m := make(map[string][]byte, len(all))
	for _, one := range all {
		if one.Name != schemaSetting { // the driver's own
			m[one.Name] = one.Value
		}
	}
	return m, nil
}

// policyRow is a policy with the seal of its row.
type policyRow struct {
	store.Policy
	seal []byte
}

const policyColumns = `version, document, activated_us, change, seal`

// values lists the policyColumns, to be scanned or bound.
func (p *policyRow) values() []any {
	return []any{&p.Version, optional{&p.Document}, stamp{&p.ActivatedAt}, changeID(p.Change[:]), &p.seal}
}

func scanPolicy(s scanner) (p policyRow, err error) {
	err = s.Scan(p.values()...)
	return p, err
}

func readPolicies(from source) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		p, err := scanPolicy(s)
		return asRow(head.Row{Record: p.Policy}, p.seal, err, `UPDATE policy SET seal = ? WHERE version = ?`, p.Version)
	}, `SELECT `+policyColumns+` FROM policy NOT INDEXED`)
}

// ActivePolicy implements [store.Store].
func (s *database) ActivePolicy(ctx context.Context) (store.Policy, error) {
	return s.policy(ctx, func(h head.Head) uint64 { return h.Policy })
}

// PolicyAt implements [store.Store].
func (s *database) PolicyAt(ctx context.Context, version uint64) (store.Policy, error) {
	return s.policy(ctx, func(head.Head) uint64 { return version })
}

func (s *database) policy(ctx context.Context, which func(head.Head) uint64) (p store.Policy, err error) {
	err = s.onHead(ctx, "reading policy", head.Policies, func(h hanging) (err error) {
		p, err = head.Policy(h.vault.seals, h.head, h.all, which(h.head))
		return err
	})
	if err != nil {
		return store.Policy{}, err
	}
	return p, nil
}

// AddPolicy implements [store.Store].
func (s *database) AddPolicy(ctx context.Context, p store.Policy, rec audit.Record) error {
	return s.change(ctx, "adding policy", rec, func(t *txn) error {
		return t.move([]head.Kind{head.Policies}, func(h *head.Head) error {
			if p.Version != h.Policy+1 {
				return store.ErrConflict
			}
			return t.insertPolicy(h, p)
		})
	})
}

var insertPolicy = insertInto("policy", policyColumns)

// insertPolicy makes a policy the active one.
func (t *txn) insertPolicy(h *head.Head, p store.Policy) (err error) {
	row := policyRow{Policy: p}
	if row.seal, err = t.seal(p); err != nil {
		return err
	}
	h.Activate(p)
	_, err = t.exec(insertPolicy, row.values()...)
	return err
}

func (t *txn) append(rec audit.Record) error {
	_, err := t.exec(`INSERT INTO record (at_us, kind, subject, salt, body) VALUES (?, ?, ?, ?, ?)`,
		rec.At.UnixMicro(), rec.Kind, rec.Subject, rec.Salt[:], rec.Body)
	if err == nil {
		t.records = append(t.records, rec)
	}
	return err
}

// Append implements [store.Store].
func (s *database) Append(ctx context.Context, rec audit.Record) error {
	if s.readOnly {
		return fmt.Errorf("appending record: %w", store.ErrReadOnly)
	}
	return s.submit(ctx, "appending record", func(t *txn) error { return t.append(rec) })
}

// Pulse implements [store.Store]. It writes a time that nothing reads, into goose's row of the newest migration: an
// update that changes nothing would not reach the disk. On a read-only store it looks at the permissions.
func (s *database) Pulse(ctx context.Context, at time.Time) error {
	if s.readOnly {
		return fmt.Errorf("writing a pulse: %w", s.couldWrite())
	}
	return s.write(ctx, "writing a pulse", func(t *txn) error {
		n, err := t.exec("UPDATE goose_db_version SET tstamp = ? WHERE id = (SELECT max(id) FROM goose_db_version)",
			at.UnixMicro())
		if err == nil && n != 1 {
			err = fmt.Errorf("%w: the table of migrations is empty", store.ErrUnavailable)
		}
		return err
	})
}

// Records implements [store.Store].
func (s *database) Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error) {
	q := query{doing: "reading records", sql: listRecords, args: []any{int64(after), max(limit, 0)}}
	return list(ctx, s.r, q, scanRecord)
}

// LastRecords implements [store.Store].
func (s *database) LastRecords(ctx context.Context, limit int) ([]audit.Record, error) {
	return list(ctx, s.r, query{doing: "reading records", sql: listLastRecords, args: []any{max(limit, 0)}}, scanRecord)
}

const (
	selectRecords   = `SELECT sequence, at_us, kind, subject, salt, body FROM record `
	listRecords     = selectRecords + `WHERE sequence > ? ORDER BY sequence LIMIT ?`
	listLastRecords = selectRecords + `ORDER BY sequence DESC LIMIT ?`
)

func scanRecord(row scanner) (r audit.Record, err error) {
	err = row.Scan(&r.Sequence, stamp{&r.At}, &r.Kind, &r.Subject, fixed(r.Salt[:]), &r.Body)
	return r, err
}

// Tally implements [store.Store].
func (s *database) Tally(ctx context.Context) (n store.Tally, err error) {
	err = s.r.row(ctx, `SELECT (SELECT count(*) FROM client), (SELECT count(*) FROM device),
			(SELECT count(*) FROM invitation), (SELECT count(*) FROM decision), (SELECT count(*) FROM decision WHERE dry = 1),
			(SELECT count(*) FROM record), (SELECT count(*) FROM key)`).
		Scan(&n.Clients, &n.Devices, &n.Invitations, &n.Decisions, &n.Questions, &n.Records, &n.Keys)
	n.Decisions -= n.Questions
	return n, readError(ctx, "counting", err)
}
