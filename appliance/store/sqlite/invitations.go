package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

const invitationColumns = `code, kind, name, display, roles, floor, created_us, expires_us, used_us, request, response, number, change, seal`

// invitationRow is where the invitationColumns are scanned to.
type invitationRow struct {
	store.Invitation
	seal []byte
}

func scanInvitation(s scanner) (i invitationRow, err error) {
	err = s.Scan(fixed(i.Code[:]), &i.Kind, &i.Name, &i.Display, roles{&i.Roles}, &i.Floor,
		stamp{&i.CreatedAt}, stamp{&i.ExpiresAt}, stamp{&i.UsedAt}, fixed(i.Request[:]), &i.Response,
		&i.Number, fixed(i.Change[:]), &i.seal)
	return i, err
}

const findInvitation = `SELECT ` + invitationColumns + ` FROM invitation WHERE code = ?`

// Invitation implements [store.Store].
func (s *database) Invitation(ctx context.Context, code [32]byte) (store.Invitation, error) {
	v, err := s.unsealed()
	var i invitationRow
	if err == nil {
		i, err = scanInvitation(s.r.row(ctx, findInvitation, code[:]))
	}
	if err == nil {
		err = v.check(i.Invitation, i.seal)
	}
	if err != nil {
		return store.Invitation{}, readError(ctx, "reading invitation", err)
	}
	return i.Invitation, nil
}

// moveInvitations changes the set of open invitations.
func (t *txn) moveInvitations(do func(*store.OpenSet) error) error {
	return t.move([]store.Hanging{store.HangingInvitations}, func(*store.Head) error {
		open := t.openSet()
		if err := do(&open); err != nil {
			return err
		}
		return t.putOpenSet(open)
	})
}

// Invite implements [store.Store].
func (s *database) Invite(ctx context.Context, i store.Invitation, rec audit.Record) error {
	return s.write(ctx, "inviting", func(t *txn) error {
		err := t.moveInvitations(func(open *store.OpenSet) (err error) {
			if err := t.expire(open, i); err != nil {
				return err
			}
			if err := t.nameFree(i); err != nil {
				return err
			}
			*open, i.Number = open.Open()
			return t.insertInvitation(i)
		})
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

func (t *txn) insertInvitation(i store.Invitation) error {
	r, err := rolesText(i.Roles)
	if err != nil {
		return err
	}
	seal, err := t.seal(i)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO invitation (code, kind, name, display, roles, floor, created_us, expires_us, number, change, seal)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		i.Code[:], string(i.Kind), i.Name, i.Display, r, int64(i.Floor), usec(i.CreatedAt), usec(i.ExpiresAt),
		int64(i.Number), idOrNull(i.Change), seal)
	return err
}

// idOrNull is NULL for an id of zeros.
func idOrNull(id [8]byte) any {
	if id == [8]byte{} {
		return nil
	}
	return id[:]
}

// partyTable are the tables of the enrolled, by kind.
var partyTable = map[store.Kind]string{store.KindClient: "client", store.KindDevice: "device"}

// expire takes out of the set what is over when i is made: invitations whose time has
// come, and those that i replaces, whose time ends now.
func (t *txn) expire(open *store.OpenSet, i store.Invitation) error {
	if i.Replace {
		if err := t.replaced(open, i); err != nil {
			return err
		}
	}
	over, err := collect(t, func(s scanner) (n uint64, err error) {
		err = s.Scan(&n)
		return n, err
	}, `SELECT number FROM invitation WHERE used_us IS NULL AND expires_us <= ? AND number >= ?`, i.CreatedAt.UnixMicro(), int64(open.Base))
	*open = open.Close(over...) // a number that is wrong closes an invitation, and opens none
	return err
}

// replaced ends the open invitations that i replaces. One that is open and whose row does
// not fit might be such a one, under another name for the moment: it is closed.
func (t *txn) replaced(open *store.OpenSet, i store.Invitation) error {
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	rows, err := collect(t, func(s scanner) (sealedRow, error) {
		row, err := scanInvitation(s)
		return sealedRow{0, row.Invitation, row.seal, nil, nil}.unless(err)
	}, `SELECT `+invitationColumns+` FROM invitation WHERE used_us IS NULL AND number >= ?`, int64(open.Base))
	if err != nil {
		return err
	}
	fits := map[uint64]bool{}
	for _, r := range rows {
		old := r.record.(store.Invitation)
		if r.err != nil || !open.Has(old.Number) || v.check(old, r.seal) != nil {
			continue
		}
		fits[old.Number] = true
		if old.Kind != i.Kind || old.Name != i.Name || !old.ExpiresAt.After(i.CreatedAt) {
			continue
		}
		old.ExpiresAt = i.CreatedAt
		if err := t.putInvitation(old); err != nil {
			return err
		}
	}
	for _, number := range open.Numbers() {
		if !fits[number] {
			_ = v.seals.Report(fmt.Sprintf("invitation %d is open, and has no row that fits", number)) // it is closed for that
			*open = open.Close(number)
		}
	}
	return nil
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

// EnrolClient implements [store.Store].
func (s *database) EnrolClient(ctx context.Context, u store.Use, c store.Client, rec audit.Record) error {
	return s.write(ctx, "enrolling client", func(t *txn) error {
		if err := t.use(u, store.KindClient); err != nil {
			return err
		}
		if err := t.freeClientName(c.Name); err != nil {
			return err
		}
		if err := t.insertClient(c); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// freeClientName gives a revoked client of the name its retired one.
func (t *txn) freeClientName(name string) error {
	ref, old, err := t.client(`c.name = ?`, name)
	if errors.Is(err, sql.ErrNoRows) || err == nil && old.Status != store.Revoked {
		return nil // the name is free, or the insertion fails by it
	}
	if err == nil {
		old.Name = old.RetiredName()
		err = t.putClient(ref, old.Client)
	}
	return err
}

// EnrolDevice implements [store.Store].
func (s *database) EnrolDevice(ctx context.Context, u store.Use, d store.Device, rec audit.Record) error {
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

// enrolDevice stores a device in its revoked row, or in a new one: the id follows
// from the name, so that a revoked device of the same name cannot keep its own.
func (t *txn) enrolDevice(d store.Device) error {
	namesake, err := t.device(`d.name = ?`, d.Name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	case namesake.Status == store.Revoked && namesake.ID != d.ID:
		namesake.Name = namesake.RetiredName()
		if err := t.putDevice(namesake.Device); err != nil {
			return err
		}
	}
	old, err := t.device(byDeviceID, d.ID[:])
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return t.insertDevice(d)
	case err != nil:
		return err
	case old.Status != store.Revoked || old.SPIFFEID != d.SPIFFEID:
		return store.ErrExists
	}
	d.Version = old.Version + 1
	return t.putDevice(d)
}

// use marks an open invitation of this kind as used.
func (t *txn) use(u store.Use, kind store.Kind) error {
	return t.moveInvitations(func(open *store.OpenSet) error {
		i, err := scanInvitation(t.row(findInvitation, u.Code[:]))
		if err == nil {
			err = t.check(i.Invitation, i.seal)
		}
		switch {
		case err != nil:
			return err
		case i.Kind != kind:
			return store.ErrNotFound
		case !i.UsedAt.IsZero() || !u.At.Before(i.ExpiresAt):
			return store.ErrUsed
		case !open.Has(i.Number):
			return t.reportForged(fmt.Sprintf("invitation %d of %q is not open any more, and its row says that it is", i.Number, i.Name))
		}
		i.UsedAt, i.Request, i.Response = store.Stamp(u.At), u.Request, u.Response
		*open = open.Close(i.Number)
		return t.putInvitation(i.Invitation)
	})
}

func (t *txn) reportForged(what string) error {
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	return v.seals.Report(what)
}

// putInvitation writes what changes of an invitation: its end.
func (t *txn) putInvitation(i store.Invitation) error {
	seal, err := t.seal(i)
	if err != nil {
		return err
	}
	request := any(nil)
	if !i.UsedAt.IsZero() {
		request = i.Request[:]
	}
	_, err = t.exec(`UPDATE invitation SET expires_us = ?, used_us = ?, request = ?, response = ?, seal = ? WHERE code = ?`,
		usec(i.ExpiresAt), usec(i.UsedAt), request, blob(i.Response), seal, i.Code[:])
	return err
}
