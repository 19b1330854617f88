package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

const adminColumns = `id, name, public, status, version, created_us, change, seal`

// adminRow is where the adminColumns are scanned to.
type adminRow struct {
	store.Admin
	seal []byte
}

func scanAdmin(s scanner) (a adminRow, err error) {
	err = s.Scan(fixed(a.ID[:]), &a.Name, fixed(a.Key[:]), &a.Status, &a.Version, stamp{&a.CreatedAt}, fixed(a.Change[:]), &a.seal)
	return a, err
}

// ListAdmins implements [store.Store].
func (s *database) ListAdmins(ctx context.Context) ([]store.Admin, error) {
	all, err := listHanging[store.Admin](ctx, s, "listing administrators", store.HangingAdmins)
	slices.SortFunc(all, func(a, b store.Admin) int { return cmp.Compare(a.Name, b.Name) })
	return all, err
}

// AddAdmin implements [store.Store].
func (s *database) AddAdmin(ctx context.Context, a store.Admin, rec audit.Record) error {
	return s.write(ctx, "adding administrator", func(t *txn) error {
		err := t.move([]store.Hanging{store.HangingAdmins}, func(*store.Head) error {
			seal, err := t.seal(a)
			if err != nil {
				return err
			}
			_, err = t.exec(`INSERT INTO admin (`+adminColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
				a.ID[:], a.Name, a.Key[:], int64(a.Status), int64(a.Version), usec(a.CreatedAt), idOrNull(a.Change), seal)
			return err
		})
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// UpdateAdmin implements [store.Store].
func (s *database) UpdateAdmin(ctx context.Context, a store.Admin, rec audit.Record) error {
	return s.write(ctx, "updating administrator", func(t *txn) error {
		err := t.move([]store.Hanging{store.HangingAdmins}, func(*store.Head) error {
			old, err := find(t.hung[store.HangingAdmins], a)
			switch {
			case err != nil:
				return err
			case old.Version != a.Version-1:
				return store.ErrConflict
			}
			old.Status, old.Version, old.Change = a.Status, a.Version, a.Change
			seal, err := t.seal(old)
			if err != nil {
				return err
			}
			_, err = t.exec(`UPDATE admin SET status = ?, version = ?, change = ?, seal = ? WHERE id = ?`,
				int64(a.Status), int64(a.Version), idOrNull(a.Change), seal, a.ID[:])
			return err
		})
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

const changeColumns = `id, document, state, reason, created_us, expires_us, ended_us, required, signed, ref, seal`

// changeRow is a request with the key of its row.
type changeRow struct {
	store.Change
	ref  int64
	seal []byte
}

func scanChange(s scanner) (c changeRow, err error) {
	err = s.Scan(fixed(c.ID[:]), &c.Document, &c.State, &c.Reason, stamp{&c.CreatedAt}, stamp{&c.ExpiresAt}, stamp{&c.EndedAt},
		&c.Required, roles{&c.Signed}, &c.ref, &c.seal)
	return c, err
}

const changeSignatures = `SELECT signer, signature, at_us FROM change_signature WHERE change = ? ORDER BY at_us, signer`

func scanSignature(s scanner) (one store.ChangeSignature, err error) {
	err = s.Scan(fixed(one.Signer[:]), &one.Signature, stamp{&one.At})
	return one, err
}

// changes reads requests on one snapshot, the newest first: those that are open, and of
// those that have ended the ones that fit, until enough are there.
func (s *database) changes(ctx context.Context, doing string, enough func([]store.Change) bool, wanted func(store.Change) bool) (list []store.Change, err error) {
	err = s.onHead(ctx, doing, store.HangingChanges, func(_ store.Head, v *vault, all hanging, ended []sealedRow) error {
		open := slices.Collect(maps.Values(all))
		rows := slices.SortedFunc(slices.Values(append(open, ended...)), func(a, b sealedRow) int { return cmp.Compare(b.ref, a.ref) })
		for _, r := range rows {
			c := r.record.(store.Change)
			if enough(list) {
				break
			}
			if wanted(c) && (!c.State.Ended() || v.check(c, r.seal) == nil) {
				list = append(list, c)
			}
		}
		return nil
	})
	if errors.Is(err, store.ErrNotFound) { // not founded
		err = nil
	}
	return list, err
}

// Change implements [store.Store].
func (s *database) Change(ctx context.Context, id [8]byte) (store.Change, error) {
	const doing = "reading change request"
	all, err := s.changes(ctx, doing, func(found []store.Change) bool { return len(found) > 0 }, func(c store.Change) bool { return c.ID == id })
	if err != nil {
		return store.Change{}, err
	}
	if len(all) == 0 {
		return store.Change{}, fmt.Errorf("%s: %w", doing, store.ErrNotFound)
	}
	return all[0], nil
}

// ListChanges implements [store.Store].
func (s *database) ListChanges(ctx context.Context, limit int) ([]store.Change, error) {
	return s.changes(ctx, "listing change requests", func(found []store.Change) bool { return len(found) >= limit }, func(store.Change) bool { return true })
}

// moveChange changes one request, or adds one, and with it the head.
func (t *txn) moveChange(do func() error) error {
	return t.move([]store.Hanging{store.HangingChanges}, func(*store.Head) error { return do() })
}

// change is a request that is open or taken, within a move of the head. One that has ended
// is [store.ErrConflict].
func (t *txn) change(id [8]byte) (c changeRow, err error) {
	r, ok := t.hung[store.HangingChanges][store.Place(store.Change{ID: id})]
	if ok {
		return changeRow{r.record.(store.Change), r.ref, r.seal}, nil
	}
	var ended bool
	err = t.row(`SELECT EXISTS (SELECT 1 FROM change WHERE id = ?)`, id[:]).Scan(&ended)
	if err == nil && ended {
		return c, store.ErrConflict
	}
	return c, cmp.Or(err, sql.ErrNoRows)
}

// AddChange implements [store.Store].
func (s *database) AddChange(ctx context.Context, c store.Change, rec audit.Record) error {
	return s.write(ctx, "adding change request", func(t *txn) error {
		if err := t.moveChange(func() error { return t.insertChange(c) }); err != nil {
			return err
		}
		return t.append(rec)
	})
}

func (t *txn) insertChange(c store.Change) error {
	signed, err := rolesText(c.Signed)
	if err != nil {
		return err
	}
	seal, err := t.seal(c)
	if err != nil {
		return err
	}
	ref, err := t.insert(`INSERT INTO change (id, document, state, reason, created_us, expires_us, ended_us, required, signed, seal)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.ID[:], c.Document, string(c.State), c.Reason, usec(c.CreatedAt), usec(c.ExpiresAt), usec(c.EndedAt), int64(c.Required), signed, seal)
	if err != nil {
		return err
	}
	for _, signature := range c.Signatures {
		if err := t.insertSignature(ref, signature); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) insertSignature(ref int64, s store.ChangeSignature) error {
	_, err := t.exec(`INSERT INTO change_signature (change, signer, signature, at_us) VALUES (?, ?, ?, ?)`,
		ref, s.Signer[:], blob(s.Signature), usec(s.At))
	return err
}

// SignChange implements [store.Store].
func (s *database) SignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec audit.Record) error {
	return s.sign(ctx, "signing change request", id, rec, func(t *txn, c *changeRow) error {
		if slices.ContainsFunc(c.Signatures, func(s store.ChangeSignature) bool { return s.Signer == signature.Signer }) {
			return store.ErrExists
		}
		c.Signatures = append(c.Signatures, signature)
		return t.insertSignature(c.ref, signature)
	})
}

// ResignChange implements [store.Store].
func (s *database) ResignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec audit.Record) error {
	return s.sign(ctx, "signing change request again", id, rec, func(t *txn, c *changeRow) error {
		i := slices.IndexFunc(c.Signatures, func(s store.ChangeSignature) bool { return s.Signer == signature.Signer })
		if i < 0 {
			return store.ErrNotFound
		}
		c.Signatures[i] = signature
		_, err := t.exec(`UPDATE change_signature SET signature = ?, at_us = ? WHERE change = ? AND signer = ?`,
			blob(signature.Signature), usec(signature.At), c.ref, signature.Signer[:])
		return err
	})
}

// sign changes the signatures of a request that is open.
func (s *database) sign(ctx context.Context, doing string, id [8]byte, rec audit.Record, do func(*txn, *changeRow) error) error {
	return s.write(ctx, doing, func(t *txn) error {
		err := t.moveChange(func() error {
			c, err := t.change(id)
			if err == nil && c.State != store.ChangeOpen {
				err = store.ErrConflict
			}
			if err == nil {
				err = do(t, &c)
			}
			if err != nil {
				return err
			}
			seal, err := t.seal(c.Change)
			if err != nil {
				return err
			}
			_, err = t.exec(`UPDATE change SET seal = ? WHERE ref = ?`, seal, c.ref)
			return err
		})
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// EndChange implements [store.Store].
func (s *database) EndChange(ctx context.Context, e store.ChangeEnd, rec audit.Record) error {
	return s.write(ctx, "ending change request", func(t *txn) error {
		if err := t.moveChange(func() error { return t.endChange(e) }); err != nil {
			return err
		}
		return t.append(rec)
	})
}

func (t *txn) endChange(e store.ChangeEnd) error {
	c, err := t.change(e.ID)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return store.ErrNotFound
	case err != nil:
		return err
	case c.State != e.From:
		return store.ErrConflict
	}
	c.State, c.Reason, c.Required, c.Signed = e.To, e.Reason, e.Required, e.Signed
	if e.To != store.ChangeTaken {
		c.EndedAt = e.At
	}
	signed, err := rolesText(c.Signed)
	if err != nil {
		return err
	}
	seal, err := t.seal(c.Change)
	if err != nil {
		return err
	}
	_, err = t.exec(`UPDATE change SET state = ?, reason = ?, ended_us = ?, required = ?, signed = ?, seal = ? WHERE ref = ?`,
		string(c.State), c.Reason, usec(c.EndedAt), int64(c.Required), signed, seal, c.ref)
	return err
}
