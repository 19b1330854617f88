package requests

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// DraftAdmin drafts the addition of an administrator.
func DraftAdmin(name string, key protocol.PublicKey) change.Draft {
	return change.Draft{Kind: policy.AdminAdd, Parameters: change.Parameters{"name": name, "public_key": key[:]}}
}

// DraftResume drafts the end of an administrator's suspension.
func (s *Service) DraftResume(ctx context.Context, name string) (change.Draft, error) {
	one, err := s.judge.AdminNamed(ctx, name)
	d := DraftAdmin(name, one.Key)
	d.Parameters["resume"] = true
	return d, err
}

// DraftRevoke drafts the revocation of an administrator.
func (s *Service) DraftRevoke(ctx context.Context, name string) (change.Draft, error) {
	one, err := s.judge.AdminNamed(ctx, name)
	return change.Draft{Kind: policy.AdminRevoke, Parameters: change.Parameters{"name": name, "signer": one.ID[:]}}, err
}

// SuspendAdmin takes away an administrator's vote until a request gives it back. It works at once
// and without a quorum, as an emergency brake: a request that waits for the keys does not hold it up, and neither does
// a quorum that those who are left cannot meet. Errors wrap [store.ErrNotFound], [parties.ErrFinal], or
// [parties.ErrInput] if no other administrator can countersign.
func (s *Service) SuspendAdmin(ctx context.Context, name string) (store.Admin, error) {
	return s.setAdmin(ctx, name, store.Suspended, change.ID{})
}

// setAdmin sets the status of an administrator. by is the request that gives the administrator a vote;
// zero if it takes the vote away.
func (s *Service) setAdmin(ctx context.Context, name string, to store.Status, by change.ID) (store.Admin, error) {
	s.admins.Lock() // concurrent suspensions would count on each other's vote
	defer s.admins.Unlock()
	one, err := s.judge.AdminNamed(ctx, name)
	switch {
	case err != nil || one.Status == to:
		return one, err
	case one.Status == store.Revoked:
		return one, final(name)
	}
	if err := s.leaves(ctx, to, name); err != nil {
		return one, err
	}
	if one.Status, one.Version = to, one.Version+1; by != (change.ID{}) {
		one.Change = by
	}
	return one, s.store.UpdateAdmin(ctx, one, parties.Record(ctx, audit.KindAdmins, name, parties.Changed(to, one.Version)))
}

// final returns an error that wraps [parties.ErrFinal].
func final(name string) error {
	return fmt.Errorf("administrator %q was %w: add a new key under a new name", name, parties.ErrFinal)
}

// leaves refuses a status of an administrator that leaves too few others.
func (s *Service) leaves(ctx context.Context, to store.Status, name string) error {
	switch to {
	case store.Suspended:
		return s.judge.KeepsSigner(ctx, s.rules.Active().Policy, name)
	case store.Revoked:
		return s.judge.KeepsWayWithout(ctx, s.rules.Active().Policy, name)
	}
	return nil
}

// roster returns the base of changes of administrators: all of them.
func (s *Service) roster(ctx context.Context) (any, error) {
	all, err := s.judge.Admins(ctx)
	rows := []any{}
	for _, one := range all {
		rows = append(rows, []any{one.ID[:], one.Version})
	}
	return rows, err
}

func (s *Service) addAdminBase(ctx context.Context, p change.Parameters) (any, error) {
	name := p.Text("name")
	key, err := protocol.ParsePublicKey(p.Bytes("public_key"))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", parties.ErrInput, err)
	}
	if name == policy.Local {
		return nil, fmt.Errorf("%w: %q is the name of the admin socket: choose another", parties.ErrInput, name)
	}
	if err := parties.CheckName(name); err != nil {
		return nil, err
	}
	all, err := s.judge.Admins(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(one store.Admin) bool { return one.Name == name || one.Key == key })
	switch resume := p.Truth("resume"); {
	case i >= 0 && !resume:
		return nil, parties.Taken(fmt.Sprintf("administrator %q has this name or key already", all[i].Name))
	case resume && (i < 0 || all[i].Name != name || all[i].Key != key):
		return nil, parties.Absent("administrator", name)
	case resume && all[i].Status == store.Revoked:
		return nil, final(name)
	}
	return s.roster(ctx)
}

// addAdmin skips the write if its row is there already.
func (s *Service) addAdmin(ctx context.Context, id change.ID, p change.Parameters) (any, error) {
	if p.Truth("resume") {
		one, err := s.setAdmin(ctx, p.Text("name"), store.Active, id)
		return one, err
	}
	key, err := protocol.ParsePublicKey(p.Bytes("public_key"))
	if err != nil {
		return nil, err
	}
	if one, err := s.judge.AdminNamed(ctx, p.Text("name")); !errors.Is(err, store.ErrNotFound) {
		if err == nil && one.Key != key {
			err = store.ErrExists
		}
		return one, err
	}
	one := store.Admin{
		ID: change.SignerOf(key), Name: p.Text("name"), Key: key, Status: store.Active, Version: 1, CreatedAt: store.Stamp(s.now()),
		Change: id,
	}
	fields := map[string]any{"event": "added", "public_key": key[:]}
	return one, s.store.AddAdmin(ctx, one, parties.Record(ctx, audit.KindAdmins, one.Name, fields))
}

func (s *Service) revokeAdminBase(ctx context.Context, p change.Parameters) (any, error) {
	one, err := s.judge.AdminNamed(ctx, p.Text("name"))
	switch {
	case err != nil:
		return nil, err
	case string(one.ID[:]) != string(p.Bytes("signer")):
		return nil, fmt.Errorf("administrator %q with that key: %w", one.Name, store.ErrNotFound)
	case one.Status == store.Revoked:
		return nil, final(one.Name)
	}
	if err := s.leaves(ctx, store.Revoked, one.Name); err != nil {
		return nil, err
	}
	return s.roster(ctx)
}

func (s *Service) revokeAdmin(ctx context.Context, _ change.ID, p change.Parameters) (any, error) {
	one, err := s.setAdmin(ctx, p.Text("name"), store.Revoked, change.ID{})
	return one, err
}
