package enrol

import (
	"context"
	"fmt"

	"countersign/appliance/change"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/policy"
)

// This file has the requests that resume a client or a device, and that unlock a client. Each names the
// version of the record, or the number of wrong passwords, that the administrators saw. A request that
// continues after an interruption therefore does not undo later changes.

// DraftResumeClient drafts the end of a client's suspension. needed is false if the client is active.
// Errors wrap [store.ErrNotFound] or [parties.ErrFinal].
func (s *Service) DraftResumeClient(ctx context.Context, name string) (d change.Draft, needed bool, err error) {
	c, err := s.parties.ClientNamed(ctx, name)
	if err == nil {
		err = resumable("client "+name, c.Status)
	}
	return draftResume(policy.ClientResume, name, c.Version), c.Status != store.Active, err
}

// DraftResumeDevice works as DraftResumeClient.
func (s *Service) DraftResumeDevice(ctx context.Context, name string) (d change.Draft, needed bool, err error) {
	v, err := s.parties.DeviceNamed(ctx, name)
	if err == nil {
		err = resumable("device "+name, v.Status)
	}
	return draftResume(policy.DeviceResume, name, v.Version), v.Status != store.Active, err
}

// DraftUnlock drafts a request to forget a client's wrong passwords. needed is false if there are
// none. Errors wrap [store.ErrNotFound].
func (s *Service) DraftUnlock(ctx context.Context, name string) (d change.Draft, needed bool, err error) {
	c, err := s.parties.ClientNamed(ctx, name)
	if err != nil {
		return d, false, err
	}
	guard, err := s.parties.Guard(ctx, c.ID)
	p := change.Parameters{"name": name, "client": c.ID[:], "wrong": uint64(guard.Wrong)}
	return change.Draft{Kind: policy.ClientUnlock, Parameters: p}, guard.Wrong > 0, err
}

func draftResume(k policy.Kind, name string, version uint64) change.Draft {
	return change.Draft{Kind: k, Parameters: change.Parameters{"name": name, "version": version}}
}

func resumable(what string, s store.Status) error {
	switch s {
	case store.Revoked:
		return fmt.Errorf("%s was %w: invite it anew with --replace", what, parties.ErrFinal)
	case store.Active, store.Suspended:
		return nil
	}
	return fmt.Errorf("%s: %w", what, store.ErrForged)
}

// suspendedAt is the record of a party that a request resumes.
type suspendedAt struct {
	what    string
	id      []byte
	version uint64
	status  store.Status
}

// base returns the state of the party. It refuses a party that is not suspended at the version that the request names.
func (a suspendedAt) base(p change.Parameters) (any, error) {
	if err := resumable(a.what, a.status); err != nil {
		return nil, err
	}
	if a.status != store.Suspended || a.version != p.Number("version") {
		return nil, fmt.Errorf("%s is %s at version %d, not suspended at version %d: %w",
			a.what, a.status, a.version, p.Number("version"), store.ErrConflict)
	}
	return []any{a.id, a.version, uint64(a.status)}, nil
}

// done reports whether the request was carried out before it was interrupted. It refuses to resume a
// party that was changed since.
func (a suspendedAt) done(p change.Parameters) (bool, error) {
	if a.status == store.Active && a.version == p.Number("version")+1 {
		return true, nil
	}
	_, err := a.base(p)
	return false, err
}

func (s *Service) clientAt(ctx context.Context, p change.Parameters) (suspendedAt, store.Client, error) {
	c, err := s.parties.ClientNamed(ctx, p.Text("name"))
	return suspendedAt{"client " + p.Text("name"), c.ID[:], c.Version, c.Status}, c, err
}

func (s *Service) deviceAt(ctx context.Context, p change.Parameters) (suspendedAt, store.Device, error) {
	d, err := s.parties.DeviceNamed(ctx, p.Text("name"))
	return suspendedAt{"device " + p.Text("name"), d.ID[:], d.Version, d.Status}, d, err
}

func (s *Service) resumeClientBase(ctx context.Context, p change.Parameters) (any, error) {
	at, _, err := s.clientAt(ctx, p)
	if err != nil {
		return nil, err
	}
	return at.base(p)
}

func (s *Service) resumeDeviceBase(ctx context.Context, p change.Parameters) (any, error) {
	at, _, err := s.deviceAt(ctx, p)
	if err != nil {
		return nil, err
	}
	return at.base(p)
}

func (s *Service) resumeClient(ctx context.Context, _ change.ID, p change.Parameters) (any, error) {
	at, c, err := s.clientAt(ctx, p)
	if err != nil {
		return nil, err
	}
	if done, err := at.done(p); done || err != nil {
		return c, err
	}
	c, err = s.parties.SetClientStatus(ctx, c.Name, store.Active)
	return c, err
}

func (s *Service) resumeDevice(ctx context.Context, _ change.ID, p change.Parameters) (any, error) {
	at, d, err := s.deviceAt(ctx, p)
	if err != nil {
		return nil, err
	}
	if done, err := at.done(p); done || err != nil {
		return d, err
	}
	d, err = s.parties.SetDeviceStatus(ctx, d.Name, store.Active)
	return d, err
}

// lockedClient returns the client of a request, and how many wrong passwords it has.
func (s *Service) lockedClient(ctx context.Context, p change.Parameters) (c store.Client, wrong uint64, err error) {
	c, err = s.parties.ClientNamed(ctx, p.Text("name"))
	if err == nil && string(c.ID[:]) != string(p.Bytes("client")) {
		err = fmt.Errorf("another client has the name %q now: %w", c.Name, store.ErrConflict)
	}
	if err != nil {
		return c, 0, err
	}
	guard, err := s.parties.Guard(ctx, c.ID)
	return c, uint64(guard.Wrong), err
}

func (s *Service) unlockBase(ctx context.Context, p change.Parameters) (any, error) {
	c, wrong, err := s.lockedClient(ctx, p)
	if err == nil && wrong != p.Number("wrong") {
		err = fmt.Errorf("client %q has %d wrong passwords, not %d: %w", c.Name, wrong, p.Number("wrong"), store.ErrConflict)
	}
	return []any{c.ID[:], c.Version, uint64(c.Status), wrong}, err
}

// unlock skips the write if there are fewer wrong passwords than the administrators saw: only an
// unlock, or the right password, lowers their number.
func (s *Service) unlock(ctx context.Context, _ change.ID, p change.Parameters) (any, error) {
	c, wrong, err := s.lockedClient(ctx, p)
	if err != nil || wrong < p.Number("wrong") {
		return c, err
	}
	c, err = s.parties.Unlock(ctx, c.Name)
	return c, err
}
