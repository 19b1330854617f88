package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/store"
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

// ListAdmins implements [store.Admins].
func (s *Store) ListAdmins(ctx context.Context) ([]store.Admin, error) {
	q := query{doing: "listing administrators", sql: `SELECT ` + adminColumns + ` FROM admin ORDER BY name`}
	return hanging(ctx, s, q, store.HangingAdmins, func(v *vault, row scanner) (store.Admin, error) {
		a, err := scanAdmin(row)
		if err == nil {
			err = v.check(a.Admin, a.seal)
		}
		return a.Admin, err
	})
}

// AddAdmin implements [store.Admins].
func (s *Store) AddAdmin(ctx context.Context, a store.Admin, rec store.Record) error {
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

// UpdateAdmin implements [store.Admins].
func (s *Store) UpdateAdmin(ctx context.Context, a store.Admin, rec store.Record) error {
	return s.write(ctx, "updating administrator", func(t *txn) error {
		err := t.move([]store.Hanging{store.HangingAdmins}, func(*store.Head) error {
			old, err := scanAdmin(t.row(`SELECT `+adminColumns+` FROM admin WHERE id = ?`, a.ID[:]))
			if err == nil {
				err = t.check(old.Admin, old.seal)
			}
			switch {
			case err != nil:
				return err
			case old.Version != a.Version-1:
				return store.ErrConflict
			}
			old.Status, old.Version, old.Change = a.Status, a.Version, a.Change
			seal, err := t.seal(old.Admin)
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

// openChange reads the signatures of a request, and verifies the whole.
func openChange(from source, v *vault, c changeRow) (changeRow, error) {
	var err error
	if c.Signatures, err = collect(from, scanSignature, changeSignatures, c.ref); err != nil {
		return c, err
	}
	return c, v.check(c.Change, c.seal)
}

// readChanges reads requests on one snapshot, against the head.
func (s *Store) readChanges(ctx context.Context, q query) (all []store.Change, err error) {
	var floor uint64
	if v := s.vault.Load(); v != nil {
		floor = v.revision.Load()
	}
	err = s.read(ctx, q.doing, func(from snapshot, v *vault) error {
		h, err := v.head(from, floor)
		if err != nil {
			return unlessNoRow(err)
		}
		if err := v.hangs(from, h, store.HangingChanges); err != nil {
			return err
		}
		rows, err := collect(from, scanChange, q.sql, q.args...)
		for _, row := range rows {
			row, err := openChange(from, v, row)
			switch {
			case err == nil:
				all = append(all, row.Change)
			case !errors.Is(err, store.ErrForged) || !row.State.Ended(): // the head has those that are open
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Change implements [store.Changes].
func (s *Store) Change(ctx context.Context, id [8]byte) (store.Change, error) {
	const doing = "reading change request"
	all, err := s.readChanges(ctx, query{doing: doing, sql: `SELECT ` + changeColumns + ` FROM change WHERE id = ?`, args: []any{id[:]}})
	if err != nil {
		return store.Change{}, err
	}
	if len(all) == 0 {
		return store.Change{}, fmt.Errorf("%s: %w", doing, store.ErrNotFound)
	}
	return all[0], nil
}

// ListChanges implements [store.Changes].
func (s *Store) ListChanges(ctx context.Context, limit int) ([]store.Change, error) {
	q := query{doing: "listing change requests", sql: `SELECT ` + changeColumns + ` FROM change ORDER BY ref DESC LIMIT ?`, args: []any{max(limit, 0)}}
	return s.readChanges(ctx, q)
}

// moveChange changes one request, or adds one, and with it the head.
func (t *txn) moveChange(do func() error) error {
	return t.move([]store.Hanging{store.HangingChanges}, func(*store.Head) error { return do() })
}

// change reads and verifies a request within the transaction.
func (t *txn) change(id [8]byte) (c changeRow, err error) {
	v, err := t.unsealed()
	if err != nil {
		return c, err
	}
	if c, err = scanChange(t.row(`SELECT `+changeColumns+` FROM change WHERE id = ?`, id[:])); err != nil {
		return c, err
	}
	return openChange(t, v, c)
}

// AddChange implements [store.Changes].
func (s *Store) AddChange(ctx context.Context, c store.Change, rec store.Record) error {
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

// SignChange implements [store.Changes].
func (s *Store) SignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec store.Record) error {
	return s.sign(ctx, "signing change request", id, rec, func(t *txn, c *changeRow) error {
		if slices.ContainsFunc(c.Signatures, func(s store.ChangeSignature) bool { return s.Signer == signature.Signer }) {
			return store.ErrExists
		}
		c.Signatures = append(c.Signatures, signature)
		return t.insertSignature(c.ref, signature)
	})
}

// ResignChange implements [store.Changes].
func (s *Store) ResignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec store.Record) error {
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
func (s *Store) sign(ctx context.Context, doing string, id [8]byte, rec store.Record, do func(*txn, *changeRow) error) error {
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

// EndChange implements [store.Changes].
func (s *Store) EndChange(ctx context.Context, e store.ChangeEnd, rec store.Record) error {
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
