package sqlite

import (
	"context"
	"fmt"
	"time"

	"countersign/appliance/store"
)

const invitationColumns = `code, kind, name, display, roles, floor, created_us, expires_us, used_us, request, response, change`

func scanInvitation(s scanner) (i store.Invitation, err error) {
	err = s.Scan(fixed(i.Code[:]), &i.Kind, &i.Name, &i.Display, roles{&i.Roles}, &i.Floor,
		stamp{&i.CreatedAt}, stamp{&i.ExpiresAt}, stamp{&i.UsedAt}, fixed(i.Request[:]), &i.Response, fixed(i.Change[:]))
	return i, err
}

// Invitation implements [store.Invitations].
func (s *Store) Invitation(ctx context.Context, code [32]byte) (store.Invitation, error) {
	i, err := scanInvitation(s.r.row(ctx, `SELECT `+invitationColumns+` FROM invitation WHERE code = ?`, code[:]))
	return i, readError(ctx, "reading invitation", err)
}

// Invite implements [store.Invitations].
func (s *Store) Invite(ctx context.Context, i store.Invitation, rec store.Record) error {
	return s.write(ctx, "inviting", func(t *txn) error {
		if err := t.withdraw(i); err != nil {
			return err
		}
		if err := t.nameFree(i); err != nil {
			return err
		}
		r, err := rolesText(i.Roles)
		if err != nil {
			return err
		}
		_, err = t.exec(`INSERT INTO invitation (code, kind, name, display, roles, floor, created_us, expires_us, change)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			i.Code[:], string(i.Kind), i.Name, i.Display, r, int64(i.Floor), usec(i.CreatedAt), usec(i.ExpiresAt), behind(i.Change))
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// partyTable are the tables of the enrolled, by kind.
var partyTable = map[store.Kind]string{store.KindClient: "client", store.KindDevice: "device"}

// withdraw ends the open invitations that i replaces.
func (t *txn) withdraw(i store.Invitation) error {
	if !i.Replace {
		return nil
	}
	_, err := t.exec(`UPDATE invitation SET expires_us = ?3 WHERE kind = ?1 AND name = ?2 AND used_us IS NULL AND expires_us > ?3`,
		string(i.Kind), i.Name, i.CreatedAt.UnixMicro())
	return err
}

// nameFree finds no enrolled party of the name and no open invitation for it. A
// revoked party is in the way unless i replaces it.
func (t *txn) nameFree(i store.Invitation) error {
	table, ok := partyTable[i.Kind]
	if !ok {
		return fmt.Errorf("kind %q of invitation is unknown", i.Kind)
	}
	var taken bool
	err := t.row(`SELECT EXISTS (SELECT 1 FROM `+table+` WHERE name = ?1 AND NOT (?4 AND status = ?5)) OR EXISTS (
			SELECT 1 FROM invitation WHERE kind = ?2 AND name = ?1 AND used_us IS NULL AND expires_us > ?3)`,
		i.Name, string(i.Kind), i.CreatedAt.UnixMicro(), i.Replace, int64(store.Revoked)).Scan(&taken)
	if err == nil && taken {
		err = store.ErrExists
	}
	return err
}

// EnrolClient implements [store.Invitations].
func (s *Store) EnrolClient(ctx context.Context, u store.Use, c store.Client, rec store.Record) error {
	return s.write(ctx, "enrolling client", func(t *txn) error {
		if err := t.use(u, store.KindClient); err != nil {
			return err
		}
		_, err := t.exec(`UPDATE client SET name = `+retiredName+` WHERE name = ? AND status = ?`, c.Name, int64(store.Revoked))
		if err != nil {
			return err
		}
		if err := t.insertClient(c); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// EnrolDevice implements [store.Invitations].
func (s *Store) EnrolDevice(ctx context.Context, u store.Use, d store.Device, rec store.Record) error {
	return s.write(ctx, "enrolling device", func(t *txn) error {
		if err := t.use(u, store.KindDevice); err != nil {
			return err
		}
		if err := t.enrolDevice(d); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// retiredName is [store.Client.RetiredName] in SQL.
const retiredName = `name || '~' || lower(hex(substr(id, 1, 4)))`

// enrolDevice stores a device in its revoked row, or in a new one: the id follows
// from the name, so that a revoked device of the same name cannot keep its own.
func (t *txn) enrolDevice(d store.Device) error {
	_, err := t.exec(`UPDATE device SET name = `+retiredName+` WHERE name = ? AND status = ? AND id <> ?`,
		d.Name, int64(store.Revoked), d.ID[:])
	if err != nil {
		return err
	}
	n, err := t.exec(`UPDATE device SET name = ?, display = ?, floor = ?, status = ?, version = version + 1, created_us = ?
		WHERE id = ? AND spiffe_id = ? AND status = ?`,
		d.Name, d.Display, int64(d.Floor), int64(d.Status), usec(d.CreatedAt), d.ID[:], d.SPIFFEID, int64(store.Revoked))
	if err != nil || n == 1 {
		return err
	}
	return t.insertDevice(d)
}

// use marks an open invitation of this kind as used.
func (t *txn) use(u store.Use, kind store.Kind) error {
	var used, expires time.Time
	err := t.row(`SELECT used_us, expires_us FROM invitation WHERE code = ? AND kind = ?`,
		u.Code[:], string(kind)).Scan(stamp{&used}, stamp{&expires})
	if err != nil {
		return err
	}
	if !used.IsZero() || !u.At.Before(expires) {
		return store.ErrUsed
	}
	_, err = t.exec(`UPDATE invitation SET used_us = ?, request = ?, response = ? WHERE code = ?`,
		u.At.UnixMicro(), u.Request[:], blob(u.Response), u.Code[:])
	return err
}
