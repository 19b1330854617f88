package sqlite

import (
	"context"

	"countersign/appliance/store"
)

const adminColumns = `id, name, public, status, version, mac, created_us, change`

// ListAdmins implements [store.Admins].
func (s *Store) ListAdmins(ctx context.Context) ([]store.Admin, error) {
	q := query{doing: "listing administrators", sql: `SELECT ` + adminColumns + ` FROM admin ORDER BY name`}
	return list(ctx, s.r, q, func(row scanner) (a store.Admin, err error) {
		err = row.Scan(fixed(a.ID[:]), &a.Name, fixed(a.Key[:]), &a.Status, &a.Version, &a.MAC, stamp{&a.CreatedAt}, fixed(a.Change[:]))
		return a, err
	})
}

// AddAdmin implements [store.Admins].
func (s *Store) AddAdmin(ctx context.Context, a store.Admin, rec store.Record) error {
	return s.write(ctx, "adding administrator", func(t *txn) error {
		_, err := t.exec(`INSERT INTO admin (`+adminColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			a.ID[:], a.Name, a.Key[:], int64(a.Status), int64(a.Version), blob(a.MAC), usec(a.CreatedAt), behind(a.Change))
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// UpdateAdmin implements [store.Admins].
func (s *Store) UpdateAdmin(ctx context.Context, a store.Admin, rec store.Record) error {
	return s.write(ctx, "updating administrator", func(t *txn) error {
		n, err := t.exec(`UPDATE admin SET status = ?, version = ?, mac = ?, change = ? WHERE id = ? AND version = ?`,
			int64(a.Status), int64(a.Version), blob(a.MAC), behind(a.Change), a.ID[:], int64(a.Version-1))
		return t.updated(change{n, err, `SELECT 1 FROM admin WHERE id = ?`, a.ID[:]}, rec)
	})
}

// AddChange implements [store.Changes].
func (s *Store) AddChange(ctx context.Context, c store.Change, rec store.Record) error {
	return s.write(ctx, "adding change request", func(t *txn) error {
		signed, err := rolesText(c.Signed)
		if err != nil {
			return err
		}
		ref, err := t.insert(`INSERT INTO change (id, document, state, reason, created_us, expires_us, ended_us, required, signed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			c.ID[:], c.Document, string(c.State), c.Reason, usec(c.CreatedAt), usec(c.ExpiresAt), usec(c.EndedAt), int64(c.Required), signed)
		if err != nil {
			return err
		}
		for _, signature := range c.Signatures {
			if err := t.insertSignature(ref, signature); err != nil {
				return err
			}
		}
		return t.append(rec)
	})
}

func (t *txn) insertSignature(ref int64, s store.ChangeSignature) error {
	_, err := t.exec(`INSERT INTO change_signature (change, signer, signature, at_us) VALUES (?, ?, ?, ?)`,
		ref, s.Signer[:], blob(s.Signature), usec(s.At))
	return err
}

const changeColumns = `id, document, state, reason, created_us, expires_us, ended_us, required, signed, ref`

// changeRow is a request with the key of its row.
type changeRow struct {
	store.Change
	ref int64
}

func scanChange(s scanner) (c changeRow, err error) {
	err = s.Scan(fixed(c.ID[:]), &c.Document, &c.State, &c.Reason, stamp{&c.CreatedAt}, stamp{&c.ExpiresAt}, stamp{&c.EndedAt}, &c.Required, roles{&c.Signed}, &c.ref)
	return c, err
}

// Change implements [store.Changes].
func (s *Store) Change(ctx context.Context, id [8]byte) (store.Change, error) {
	c, err := scanChange(s.r.row(ctx, `SELECT `+changeColumns+` FROM change WHERE id = ?`, id[:]))
	if err != nil {
		return c.Change, readError(ctx, "reading change request", err)
	}
	return s.withSignatures(ctx, c)
}

// ListChanges implements [store.Changes].
func (s *Store) ListChanges(ctx context.Context, limit int) ([]store.Change, error) {
	q := query{doing: "listing change requests", sql: `SELECT ` + changeColumns + ` FROM change ORDER BY ref DESC LIMIT ?`, args: []any{max(limit, 0)}}
	rows, err := list(ctx, s.r, q, scanChange)
	if err != nil {
		return nil, err
	}
	var all []store.Change
	for _, row := range rows {
		c, err := s.withSignatures(ctx, row)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func (s *Store) withSignatures(ctx context.Context, c changeRow) (_ store.Change, err error) {
	q := query{
		doing: "reading signatures of a change", args: []any{c.ref},
		sql: `SELECT signer, signature, at_us FROM change_signature WHERE change = ? ORDER BY at_us, signer`,
	}
	c.Signatures, err = list(ctx, s.r, q, func(row scanner) (s store.ChangeSignature, err error) {
		err = row.Scan(fixed(s.Signer[:]), &s.Signature, stamp{&s.At})
		return s, err
	})
	return c.Change, err
}

// SignChange implements [store.Changes].
func (s *Store) SignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec store.Record) error {
	return s.write(ctx, "signing change request", func(t *txn) error {
		ref, err := t.openChange(id)
		if err != nil {
			return err
		}
		if err := t.insertSignature(ref, signature); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// ResignChange implements [store.Changes].
func (s *Store) ResignChange(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec store.Record) error {
	return s.write(ctx, "signing change request again", func(t *txn) error {
		ref, err := t.openChange(id)
		if err != nil {
			return err
		}
		return t.resign(ref, signature, rec)
	})
}

// RenewWord implements [store.Changes].
func (s *Store) RenewWord(ctx context.Context, id [8]byte, signature store.ChangeSignature, rec store.Record) error {
	return s.write(ctx, "renewing a word of a change request", func(t *txn) error {
		var ref int64
		if err := t.row(`SELECT ref FROM change WHERE id = ?`, id[:]).Scan(&ref); err != nil {
			return err
		}
		signature.Signer = [8]byte{}
		return t.resign(ref, signature, rec)
	})
}

// resign writes over what the same signer signed of a request.
func (t *txn) resign(ref int64, s store.ChangeSignature, rec store.Record) error {
	n, err := t.exec(`UPDATE change_signature SET signature = ?, at_us = ? WHERE change = ? AND signer = ?`,
		blob(s.Signature), usec(s.At), ref, s.Signer[:])
	if err == nil && n == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return err
	}
	return t.append(rec)
}

// openChange is the row of a request, or [store.ErrConflict] of one that is not open.
func (t *txn) openChange(id [8]byte) (ref int64, err error) {
	var state store.ChangeState
	err = t.row(`SELECT ref, state FROM change WHERE id = ?`, id[:]).Scan(&ref, &state)
	if err == nil && state != store.ChangeOpen {
		err = store.ErrConflict
	}
	return ref, err
}

// EndChange implements [store.Changes].
func (s *Store) EndChange(ctx context.Context, e store.ChangeEnd, rec store.Record) error {
	return s.write(ctx, "ending change request", func(t *txn) error {
		var ended any
		if e.To != store.ChangeTaken {
			ended = usec(e.At)
		}
		signed, err := rolesText(e.Signed)
		if err != nil {
			return err
		}
		n, err := t.exec(`UPDATE change SET state = ?, reason = ?, ended_us = ?, required = ?, signed = ? WHERE id = ? AND state = ?`,
			string(e.To), e.Reason, ended, int64(e.Required), signed, e.ID[:], string(e.From))
		return t.updated(change{n, err, `SELECT 1 FROM change WHERE id = ?`, e.ID[:]}, rec)
	})
}
