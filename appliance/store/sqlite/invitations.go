package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
)

// invitationRow is an invitation with the seal of its row.
type invitationRow struct {
	store.Invitation
	seal []byte
}

const (
	invitationColumns = `code, kind, name, display, roles, floor, created_us, expires_us, used_us, request, response, number, change, seal`
	findInvitation    = `SELECT ` + invitationColumns + ` FROM invitation WHERE code = ?`
)

func scanInvitation(s scanner, before ...any) (i invitationRow, err error) {
	err = s.Scan(append(before, fixed(i.Code[:]), &i.Kind, &i.Name, &i.Display, texts{&i.Roles}, &i.Floor,
		stamp{&i.CreatedAt}, stamp{&i.ExpiresAt}, stamp{&i.UsedAt}, fixed(i.Request[:]), &i.Response,
		&i.Number, changeID(i.Change[:]), &i.seal)...)
	return i, err
}

// openInvitation scans and verifies an invitation.
func openInvitation(s scanner, v *vault) (store.Invitation, error) {
	i, err := scanInvitation(s)
	if err == nil {
		err = v.check(i.Invitation, i.seal)
	}
	return i.Invitation, err
}

// Invitation implements [store.Store].
func (s *database) Invitation(ctx context.Context, code [32]byte) (i store.Invitation, err error) {
	v, err := s.unsealed()
	if err == nil {
		i, err = openInvitation(s.r.row(ctx, findInvitation, code[:]), v)
	}
	if err != nil {
		return store.Invitation{}, readError(ctx, "reading invitation", err)
	}
	return i, nil
}

// OpenInvitations implements [store.Store].
func (s *database) OpenInvitations(ctx context.Context, at time.Time) (list []store.Invitation, err error) {
	err = s.onHead(ctx, "listing invitations", head.Invitations, func(h hanging) error {
		r, err := head.Find(h.all, head.OpenSet{}.Record())
		if err != nil { // a store without invitations has no set
			return nil
		}
		open, err := head.ParseOpenSet(r.Body)
		if err != nil {
			return err
		}
		all, err := unused(h.from, open.Base)
		for _, i := range all {
			if open.Has(i.Number) && i.ExpiresAt.After(at) {
				list = append(list, i)
			}
		}
		return err
	})
	slices.SortFunc(list, func(a, b store.Invitation) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Kind), string(b.Kind)))
	})
	return list, err
}

// Withdraw implements [store.Store].
func (s *database) Withdraw(ctx context.Context, kind store.Kind, name string, at time.Time, rec audit.Record) error {
	return s.change(ctx, "withdrawing an invitation", rec, func(t *txn) error {
		return t.moveInvitations(func(open *head.OpenSet) error {
			all, err := unused(t, open.Base)
			if err != nil {
				return err
			}
			isOpen := func(i store.Invitation) bool {
				return i.Kind == kind && i.Name == name && open.Has(i.Number) && i.ExpiresAt.After(at)
			}
			if !slices.ContainsFunc(all, isOpen) {
				return store.ErrNotFound
			}
			return t.expire(open, store.Invitation{Kind: kind, Name: name, CreatedAt: store.Stamp(at), Replace: true})
		})
	})
}

// moveInvitations changes the set of open invitations.
func (t *txn) moveInvitations(do func(*head.OpenSet) error) error {
	return t.move([]head.Kind{head.Invitations}, func(*head.Head) error {
		open := t.openSet()
		if err := do(&open); err != nil {
			return err
		}
		return t.putOpenSet(open)
	})
}

// Invite implements [store.Store].
func (s *database) Invite(ctx context.Context, i store.Invitation, rec audit.Record) error {
	return s.change(ctx, "inviting", rec, func(t *txn) error {
		return t.moveInvitations(func(open *head.OpenSet) (err error) {
			if err := t.expire(open, i); err != nil {
				return err
			}
			if err := t.nameFree(i); err != nil {
				return err
			}
			*open, i.Number = open.Open()
			_, err = t.put(i, `INSERT INTO invitation (seal, code, kind, name, display, roles, floor, created_us, expires_us, number, change)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				i.Code[:], i.Kind, i.Name, i.Display, texts{&i.Roles}, int64(i.Floor), stamp{&i.CreatedAt}, stamp{&i.ExpiresAt},
				i.Number, changeID(i.Change[:]))
			return err
		})
	})
}

// partyTable names the table of the enrolled parties of a kind.
var partyTable = map[store.Kind]string{store.KindClient: "client", store.KindDevice: "device"}

// expire closes the invitations that are over when i is made: those whose time has come, and those
// that i replaces.
func (t *txn) expire(open *head.OpenSet, i store.Invitation) error {
	if i.Replace {
		if err := t.replaced(open, i); err != nil {
			return err
		}
	}
	over, err := collect(t, func(s scanner) (n uint64, err error) {
		err = s.Scan(&n)
		return n, err
	}, `SELECT number FROM invitation WHERE used_us IS NULL AND expires_us <= ? AND number >= ?`, i.CreatedAt.UnixMicro(), int64(open.Base))
	*open = open.Close(over...) // a wrong number closes an invitation, and opens none
	return err
}

// unused reads the invitations that their rows say are unused, from a number on. Forged ones are
// left out, and have raised the alarm.
func unused(in source, from uint64) ([]store.Invitation, error) {
	all, err := collect(in, func(s scanner) (i store.Invitation, err error) {
		i, err = openInvitation(s, in.verifier())
		if errors.Is(err, store.ErrForged) {
			return store.Invitation{}, nil
		}
		return i, err
	}, `SELECT `+invitationColumns+` FROM invitation WHERE used_us IS NULL AND number >= ?`, int64(from))
	fits := all[:0]
	for _, i := range all {
		if i.Kind != "" {
			fits = append(fits, i)
		}
	}
	return fits, err
}

// replaced ends the open invitations that i replaces. An open invitation without a row that fits may
// be one of them, whose row another program has changed for the moment: it is closed too.
func (t *txn) replaced(open *head.OpenSet, i store.Invitation) error {
	all, err := unused(t, open.Base)
	if err != nil {
		return err
	}
	fits := map[uint64]bool{}
	for _, old := range all {
		if !open.Has(old.Number) {
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
			_ = t.verifier().seals.Report(fmt.Sprintf("invitation %d is open, and has no row that fits", number)) // it is closed
			*open = open.Close(number)
		}
	}
	return nil
}

// nameFree returns [store.ErrExists] if an enrolled party has the name, or an open invitation is for
// it. A revoked party counts unless i replaces it.
func (t *txn) nameFree(i store.Invitation) error {
	table, ok := partyTable[i.Kind]
	if !ok {
		return fmt.Errorf("kind %q of invitation is unknown", i.Kind)
	}
	var taken bool
	err := t.row(`SELECT EXISTS (SELECT 1 FROM `+table+` WHERE name = ?1 AND NOT (?4 AND status = ?5)) OR EXISTS (
			SELECT 1 FROM invitation WHERE kind = ?2 AND name = ?1 AND used_us IS NULL AND expires_us > ?3)`,
		i.Name, i.Kind, i.CreatedAt.UnixMicro(), i.Replace, store.Revoked).Scan(&taken)
	if err == nil && taken {
		err = store.ErrExists
	}
	return err
}

// EnrolClient implements [store.Store].
func (s *database) EnrolClient(ctx context.Context, u store.Use, c store.Client, rec audit.Record) error {
	return s.change(ctx, "enrolling client", rec, func(t *txn) error {
		if err := t.use(u, store.KindClient); err != nil {
			return err
		}
		if err := t.freeClientName(c.Name); err != nil {
			return err
		}
		return t.insertClient(c)
	})
}

// freeClientName renames a revoked client of the name, see [store.Client.RetiredName].
func (t *txn) freeClientName(name string) error {
	old, err := openClient(t.row(`SELECT `+clientColumns+` FROM `+clientTables+` WHERE c.name = ?`, name), t.verifier(), nil)
	if errors.Is(err, sql.ErrNoRows) || err == nil && old.Status != store.Revoked {
		return nil // the name is free, or the insertion fails
	}
	if err == nil {
		old.Name = old.RetiredName()
		err = t.putClient(old.ref, old.Client)
	}
	return err
}

// EnrolDevice implements [store.Store].
func (s *database) EnrolDevice(ctx context.Context, u store.Use, d store.Device, rec audit.Record) error {
	return s.change(ctx, "enrolling device", rec, func(t *txn) error {
		if err := t.use(u, store.KindDevice); err != nil {
			return err
		}
		return t.enrolDevice(d)
	})
}

// enrolDevice stores a device in its revoked row, or in a new one. The id follows from the name, so
// a revoked device of the same name cannot keep its own row.
func (t *txn) enrolDevice(d store.Device) error {
	namesake, err := openDevice(t.row(`SELECT `+deviceColumns+` FROM device WHERE name = ?`, d.Name), t.verifier(), nil)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	case namesake.Status == store.Revoked && namesake.ID != d.ID:
		namesake.Name = namesake.RetiredName()
		if err := t.putDevice(namesake); err != nil {
			return err
		}
	}
	old, err := t.device(d.ID)
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
	return t.moveInvitations(func(open *head.OpenSet) error {
		i, err := openInvitation(t.row(findInvitation, u.Code[:]), t.verifier())
		switch {
		case err != nil:
			return err
		case i.Kind != kind:
			return store.ErrNotFound
		case !i.UsedAt.IsZero() || !u.At.Before(i.ExpiresAt):
			return store.ErrUsed
		case !open.Has(i.Number):
			return t.verifier().seals.Report(fmt.Sprintf("invitation %d of %q is not open any more, and its row says that it is", i.Number, i.Name))
		}
		i.UsedAt, i.Request, i.Response = store.Stamp(u.At), u.Request, u.Response
		*open = open.Close(i.Number)
		return t.putInvitation(i)
	})
}

// putInvitation writes the end of an invitation.
func (t *txn) putInvitation(i store.Invitation) error {
	request := i.Request[:]
	if i.UsedAt.IsZero() {
		request = nil
	}
	_, err := t.put(i, `UPDATE invitation SET seal = ?, expires_us = ?, used_us = ?, request = ?, response = ? WHERE code = ?`,
		stamp{&i.ExpiresAt}, stamp{&i.UsedAt}, optional{&request}, optional{&i.Response}, i.Code[:])
	return err
}
