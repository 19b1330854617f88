package enrol

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/protocol"
)

// granted is what a party or an open code has, and what a replacement keeps unless it names something else.
type granted struct {
	display string
	floor   protocol.Level
	roles   []string // never nil, without [store.RoleUV]: an attestation of the old phone's key gave that one
}

// keeping fills in what an invitation replaces, and what it keeps of it.
func (s *Service) keeping(ctx context.Context, i Invite) (Invite, error) {
	was, err := s.replaced(ctx, i)
	if err != nil || was == nil {
		return i, err
	}
	if i.was = was; i.Kind == store.KindClient {
		if i.Roles == nil {
			i.Roles = was.roles
		}
		return i, nil
	}
	if i.Display == "" {
		i.Display = was.display
	}
	if i.Floor == 0 {
		i.Floor = was.floor
	}
	return i, nil
}

// replaced returns what the open code for a name grants or, without one, what the party of that name has; nil if
// there is neither. It refuses a record that does not fit its seal.
func (s *Service) replaced(ctx context.Context, i Invite) (*granted, error) {
	open, err := s.OpenFor(ctx, i.Kind, i.Name)
	was, status := granted{open.Display, open.Floor, open.Roles}, store.Active
	switch {
	case !errors.Is(err, store.ErrNotFound):
	case i.Kind == store.KindClient:
		var c store.Client
		c, err = s.parties.ClientNamed(ctx, i.Name)
		was.roles, status = c.Roles, c.Status
	default:
		var d store.Device
		d, err = s.parties.DeviceNamed(ctx, i.Name)
		was.display, was.floor, status = d.Display, d.Floor, d.Status
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err == nil && status == 0: // its record does not fit its seal, so that nothing of it can be kept
		return nil, fmt.Errorf("%s %q: %w", i.Kind, i.Name, store.ErrForged)
	}
	was.roles = slices.DeleteFunc(append([]string{}, was.roles...), func(role string) bool { return role == store.RoleUV })
	return &was, err
}

// describe adds to a request what it replaces, so that its signers see what stays and what changes.
func (g granted) describe(p change.Parameters, kind store.Kind) {
	if kind == store.KindClient {
		p["was_roles"] = g.roles
		return
	}
	p["was_display"], p["was_floor"] = g.display, uint64(g.floor)
}

// checkWas refuses a request that describes something else than it replaces. One of an earlier release describes
// nothing.
func (s *Service) checkWas(ctx context.Context, i Invite, p change.Parameters) error {
	described := slices.ContainsFunc([]string{"was_roles", "was_display", "was_floor"}, func(name string) bool { return p[name] != nil })
	if !described {
		return nil
	}
	was, err := s.replaced(ctx, i)
	if err != nil {
		return err
	}
	if was == nil || i.Kind == store.KindClient && !slices.Equal(was.roles, p.Texts("was_roles")) ||
		i.Kind == store.KindDevice && (was.display != p.Text("was_display") || uint64(was.floor) != p.Number("was_floor")) {
		return fmt.Errorf("%s %q is not as the request describes it: %w", i.Kind, i.Name, store.ErrConflict)
	}
	return nil
}
