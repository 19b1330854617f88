package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
)

// adminRow is an administrator with the seal of the row.
type adminRow struct {
	store.Admin
	seal []byte
}

const adminColumns = `id, name, public, status, version, created_us, change, seal`

// values lists the adminColumns, to be scanned or bound.
func (a *adminRow) values() []any {
	return []any{
		fixed(a.ID[:]), &a.Name, fixed(a.Key[:]), &a.Status, &a.Version, stamp{&a.CreatedAt}, changeID(a.Change[:]), &a.seal,
	}
}

func readAdmins(from source) ([]sealedRow, error) {
	return collect(from, func(s scanner) (sealedRow, error) {
		var a adminRow
		err := s.Scan(a.values()...)
		return asRow(head.Row{Record: a.Admin}, a.seal, err, `UPDATE admin SET seal = ? WHERE id = ?`, a.ID[:])
	}, `SELECT `+adminColumns+` FROM admin NOT INDEXED`)
}

// ListAdmins implements [store.Store].
func (s *database) ListAdmins(ctx context.Context) ([]store.Admin, error) {
	all, err := listHanging[store.Admin](ctx, s, "listing administrators", head.Admins)
	slices.SortFunc(all, func(a, b store.Admin) int { return cmp.Compare(a.Name, b.Name) })
	return all, err
}

// changeAdmins runs do within a move of the head.
func (s *database) changeAdmins(ctx context.Context, doing string, rec audit.Record, do func(*txn) error) error {
	return s.change(ctx, doing, rec, func(t *txn) error {
		return t.move([]head.Kind{head.Admins}, func(*head.Head) error { return do(t) })
	})
}

var insertAdmin = insertInto("admin", adminColumns)

// AddAdmin implements [store.Store].
func (s *database) AddAdmin(ctx context.Context, a store.Admin, rec audit.Record) error {
	return s.changeAdmins(ctx, "adding administrator", rec, func(t *txn) (err error) {
		row := adminRow{Admin: a}
		if row.seal, err = t.seal(a); err != nil {
			return err
		}
		_, err = t.exec(insertAdmin, row.values()...)
		return err
	})
}

// UpdateAdmin implements [store.Store].
func (s *database) UpdateAdmin(ctx context.Context, a store.Admin, rec audit.Record) error {
	return s.changeAdmins(ctx, "updating administrator", rec, func(t *txn) error {
		next, err := head.Find(t.moving.Records(head.Admins), a)
		switch {
		case err != nil:
			return err
		case next.Version != a.Version-1:
			return store.ErrConflict
		}
		next.Status, next.Version, next.Change = a.Status, a.Version, a.Change
		_, err = t.put(next, `UPDATE admin SET seal = ?, status = ?, version = ?, change = ? WHERE id = ?`,
			a.Status, a.Version, changeID(a.Change[:]), a.ID[:])
		return err
	})
}

const changeColumns = `id, document, state, reason, created_us, expires_us, ended_us, required, signed`

// changeValues lists the changeColumns, to be scanned or bound.
func changeValues(c *store.Change) []any {
	return []any{
		fixed(c.ID[:]), &c.Document, &c.State, &c.Reason,
		stamp{&c.CreatedAt},
		stamp{&c.ExpiresAt},
		stamp{&c.EndedAt},
		&c.Required,
		texts{&c.Signed},
	}
}

// readChanges reads all requests, with all signatures.
func readChanges(from source) ([]sealedRow, error) {
	return readChangesWhere(from, func(store.Change) bool { return true }, `NOT INDEXED`)
}

// readChangesWhere reads some rows of the table, which a clause of SQL selects, with the signatures
// of the requests that signed selects.
func readChangesWhere(from source, signed func(store.Change) bool, rows string, args ...any) ([]sealedRow, error) {
	all, err := collect(from, func(s scanner) (sealedRow, error) {
		var c store.Change
		var ref int64
		var seal []byte
		err := s.Scan(append(changeValues(&c), &ref, &seal)...)
		return asRow(head.Row{Ref: ref, Record: c}, seal, err, `UPDATE change SET seal = ? WHERE ref = ?`, ref)
	}, `SELECT `+changeColumns+`, ref, seal FROM change `+rows, args...)
	for i, r := range all {
		if err == nil && r.Err == nil && signed(r.Record.(store.Change)) {
			err = readSignatures(from, &all[i].Row)
		}
	}
	return all, err
}

// readSignatures reads the signatures of a request. Signatures that are not well-formed are an error of the row.
func readSignatures(from source, r *head.Row) (err error) {
	c := r.Record.(store.Change)
	c.Signatures, err = collect(from, func(s scanner) (one store.ChangeSignature, err error) {
		err = s.Scan(fixed(one.Signer[:]), &one.Signature, stamp{&one.At})
		return one, err
	}, `SELECT signer, signature, at_us FROM change_signature WHERE change = ? ORDER BY at_us, signer`, r.Ref)
	r.Record = c
	if errors.Is(err, store.ErrForged) {
		r.Err, err = err, nil
	}
	return err
}

// knownChanges says where the requests in force are, as of a commit: a request that has ended is
// never in force again, so that later reads need not look at it. The head shows that none is
// missing.
type knownChanges struct {
	refs []int64 // of the requests in force
	last int64   // the highest ref; what is above was added later
}

func inForce(c store.Change) bool { return !c.State.Ended() }

// readInForce reads the requests that may be in force, by their refs, which no index can redirect.
// Without known it reads them all. Of those that have ended it reads no signatures.
func readInForce(from source, known *knownChanges) (all []sealedRow, err error) {
	if known == nil {
		return readChangesWhere(from, inForce, `NOT INDEXED`)
	}
	for _, ref := range known.refs {
		some, err := readChangesWhere(from, inForce, `NOT INDEXED WHERE ref = ?`, ref)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	more, err := readChangesWhere(from, inForce, `NOT INDEXED WHERE ref > ?`, known.last)
	return append(all, more...), err
}

// learn notes where the verified requests in force are.
func (v *vault) learn(from snapshot, all head.Records, ended []head.Row) {
	next := &knownChanges{}
	if from.known != nil {
		next.last = from.known.last
	}
	for _, r := range all {
		next.refs, next.last = append(next.refs, r.Ref), max(next.last, r.Ref)
	}
	for _, r := range ended {
		next.last = max(next.last, r.Ref)
	}
	v.known.Store(next)
}

// onChanges reads and verifies the requests in force.
func (s *database) onChanges(ctx context.Context, doing string, do func(hanging) error) error {
	err := s.onHead(ctx, doing, head.Changes, func(h hanging) error {
		h.vault.learn(h.from, h.all, h.ended)
		return do(h)
	})
	if errors.Is(err, store.ErrNotFound) && !errors.Is(err, errNoChange) { // an empty store
		err = nil
	}
	return err
}

var errNoChange = fmt.Errorf("change request: %w", store.ErrNotFound)

// over verifies a request that the head does not hold. ok is false if it does not fit its seal, or
// says that it is in force, which would have been found.
func (h hanging) over(r head.Row) (c store.Change, ok bool, err error) {
	if r.Err != nil {
		return c, false, nil
	}
	if err := readSignatures(h.from, &r); err != nil || r.Err != nil {
		return c, false, err
	}
	c = r.Record.(store.Change)
	if inForce(c) {
		// The row is left out.
		_ = h.vault.seals.Report(fmt.Sprintf("change request %x has ended, but its row says that it has not", c.ID))
		return c, false, nil
	}
	return c, h.vault.seals.Check(c, r.Seal) == nil, nil
}

// Change implements [store.Store].
func (s *database) Change(ctx context.Context, id [8]byte) (c store.Change, err error) {
	found := false
	err = s.onChanges(ctx, "reading change request", func(h hanging) (err error) {
		for _, r := range h.all {
			if one := r.Record.(store.Change); one.ID == id {
				c, found = one, true
				return nil
			}
		}
		rows, err := readChangesWhere(h.from, func(store.Change) bool { return false }, `WHERE id = ?`, id[:])
		for _, r := range rows {
			if err == nil && !found {
				c, found, err = h.over(r.Row)
			}
		}
		if err == nil && (!found || c.ID != id) {
			err = errNoChange
		}
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("reading change request: %w", errNoChange)
	}
	if err != nil {
		return store.Change{}, err
	}
	return c, nil
}

// ChangesInForce implements [store.Store].
func (s *database) ChangesInForce(ctx context.Context) (list []store.Change, err error) {
	err = s.onChanges(ctx, "reading change requests in force", func(h hanging) error {
		rows := slices.SortedFunc(maps.Values(h.all), newerRow)
		for _, r := range rows {
			list = append(list, r.Record.(store.Change))
		}
		return nil
	})
	return list, err
}

func newerRow(a, b head.Row) int { return cmp.Compare(b.Ref, a.Ref) }

// ListChanges implements [store.Store]. It leaves out requests that have ended and do not fit their
// seals.
func (s *database) ListChanges(ctx context.Context, limit int) (list []store.Change, err error) {
	err = s.onChanges(ctx, "listing change requests", func(h hanging) error {
		held := map[int64]store.Change{}
		for _, r := range h.all {
			held[r.Ref] = r.Record.(store.Change)
		}
		for below := int64(math.MaxInt64); len(list) < limit; {
			rows, err := readChangesWhere(h.from, func(store.Change) bool { return false },
				`NOT INDEXED WHERE ref < ? ORDER BY ref DESC LIMIT ?`, below, limit)
			if err != nil || len(rows) == 0 {
				return err
			}
			last := rows[len(rows)-1].Ref
			if last <= 0 || last >= below { // rows that cannot be read
				return nil
			}
			below = last
			for _, r := range rows {
				c, ok := held[r.Ref]
				if !ok {
					if c, ok, err = h.over(r.Row); err != nil {
						return err
					}
				}
				if ok && len(list) < limit {
					list = append(list, c)
				}
			}
		}
		return nil
	})
	return list, err
}

// moveChange runs do within a move of the head.
func (s *database) moveChange(ctx context.Context, doing string, rec audit.Record, do func(*txn) error) error {
	return s.change(ctx, doing, rec, func(t *txn) error {
		return t.move([]head.Kind{head.Changes}, func(*head.Head) error { return do(t) })
	})
}

// openChange returns a request that is open or taken, within a move of the head. One that has ended
// is [store.ErrConflict].
func (t *txn) openChange(id [8]byte) (c store.Change, ref int64, err error) {
	open := t.moving.Records(head.Changes)
	for _, r := range open {
		if c := r.Record.(store.Change); c.ID == id {
			return c, r.Ref, nil
		}
	}
	var ended bool
	err = t.row(`SELECT EXISTS (SELECT 1 FROM change WHERE id = ?)`, id[:]).Scan(&ended)
	if err == nil && ended {
		err = store.ErrConflict
	}
	return c, 0, cmp.Or(err, store.ErrNotFound)
}

// AddChange implements [store.Store].
func (s *database) AddChange(ctx context.Context, c store.Change, rec audit.Record) error {
	return s.moveChange(ctx, "adding change request", rec, func(t *txn) error {
		seal, err := t.seal(c)
		if err != nil {
			return err
		}
		ref, err := t.insert(`INSERT INTO change (seal, `+changeColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			append([]any{seal}, changeValues(&c)...)...)
		if err != nil {
			return err
		}
		for _, signature := range c.Signatures {
			if err := t.insertSignature(ref, signature); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *txn) insertSignature(ref int64, s store.ChangeSignature) error {
	_, err := t.exec(`INSERT INTO change_signature (change, signer, signature, at_us) VALUES (?, ?, ?, ?)`,
		ref, s.Signer[:], optional{&s.Signature}, stamp{&s.At})
	return err
}

// SignChange implements [store.Store].
func (s *database) SignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec audit.Record) error {
	return s.moveChange(ctx, "signing change request", rec, func(t *txn) error {
		return t.sign(id, func(c *store.Change, ref int64) error {
			if signatureOf(c, signature.Signer) >= 0 {
				return store.ErrExists
			}
			c.Signatures = append(c.Signatures, signature)
			return t.insertSignature(ref, signature)
		})
	})
}

// ResignChange implements [store.Store].
func (s *database) ResignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec audit.Record) error {
	return s.moveChange(ctx, "signing change request again", rec, func(t *txn) error {
		return t.sign(id, func(c *store.Change, ref int64) error {
			i := signatureOf(c, signature.Signer)
			if i < 0 {
				return store.ErrNotFound
			}
			c.Signatures[i] = signature
			_, err := t.exec(`UPDATE change_signature SET signature = ?, at_us = ? WHERE change = ? AND signer = ?`,
				optional{&signature.Signature}, stamp{&signature.At}, ref, signature.Signer[:])
			return err
		})
	})
}

// signatureOf returns the index of a signer's signature, or -1.
func signatureOf(c *store.Change, signer [8]byte) int {
	return slices.IndexFunc(c.Signatures, func(s store.ChangeSignature) bool { return s.Signer == signer })
}

// sign changes the signatures of an open request.
func (t *txn) sign(id [8]byte, do func(*store.Change, int64) error) error {
	c, ref, err := t.openChange(id)
	switch {
	case err != nil:
		return err
	case c.State != store.ChangeOpen:
		return store.ErrConflict
	}
	if err := do(&c, ref); err != nil {
		return err
	}
	_, err = t.put(c, `UPDATE change SET seal = ? WHERE ref = ?`, ref)
	return err
}

// EndChange implements [store.Store].
func (s *database) EndChange(ctx context.Context, e store.ChangeEnd, rec audit.Record) error {
	return s.moveChange(ctx, "ending change request", rec, func(t *txn) error {
		c, ref, err := t.openChange(e.ID)
		switch {
		case err != nil:
			return err
		case c.State != e.From:
			return store.ErrConflict
		}
		c.State, c.Reason, c.Required, c.Signed = e.To, e.Reason, e.Required, e.Signed
		if e.To != store.ChangeTaken {
			c.EndedAt = e.At
		}
		_, err = t.put(c, `UPDATE change SET seal = ?, state = ?, reason = ?, ended_us = ?, required = ?, signed = ? WHERE ref = ?`,
			c.State, c.Reason, stamp{&c.EndedAt}, c.Required, texts{&c.Signed}, ref)
		return err
	})
}
