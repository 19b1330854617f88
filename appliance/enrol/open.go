package enrol

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/parties"
	"countersign/appliance/store"
)

// Open lists the invitations of a kind of party that can still be used, by name.
func (s *Service) Open(ctx context.Context, kind store.Kind) ([]store.Invitation, error) {
	all, err := s.store.OpenInvitations(ctx, s.now())
	return slices.DeleteFunc(all, func(i store.Invitation) bool { return i.Kind != kind }), err
}

// OpenFor returns the open invitation for a name, or [store.ErrNotFound].
func (s *Service) OpenFor(ctx context.Context, kind store.Kind, name string) (store.Invitation, error) {
	all, err := s.Open(ctx, kind)
	if i := slices.IndexFunc(all, func(i store.Invitation) bool { return i.Name == name }); i >= 0 {
		return all[i], err
	}
	if err == nil {
		err = parties.Absent(string(kind), name)
	}
	return store.Invitation{}, err
}

// Revoke revokes the party of a name and withdraws its open invitation, at once. It returns that invitation, or zero if
// none was open. The error wraps [store.ErrNotFound] if there is neither a party nor an invitation.
func (s *Service) Revoke(ctx context.Context, kind store.Kind, name string) (ended store.Invitation, err error) {
	open, err := s.OpenFor(ctx, kind, name)
	if err == nil {
		rec := parties.Record(ctx, string(kind), name, map[string]any{"event": "withdrawn"})
		err = s.store.Withdraw(ctx, kind, name, s.now(), rec)
	}
	withdrawn := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return open, fmt.Errorf("withdrawing the invitation of %s %q: %w", kind, name, err)
	}
	if kind == store.KindClient {
		_, err = s.parties.SetClientStatus(ctx, name, store.Revoked)
	} else {
		_, err = s.parties.SetDeviceStatus(ctx, name, store.Revoked)
	}
	if withdrawn && errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return open, err
}
