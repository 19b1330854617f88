package appliance

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Sentinels of the Administer door.
var (
	// ErrInput: the request is wrong; the message says how.
	ErrInput = errors.New("bad request")
	// ErrForged: the record was changed outside of the appliance and grants nothing.
	// Enrol the person anew under another name.
	ErrForged = store.ErrForged
	// ErrFinal: the party was revoked, which nothing undoes.
	ErrFinal = errors.New("revoked is final: invite it anew, in place of the revoked one")
)

// record makes an audit record about a party; kind is a Kind constant of store.
func (a *Appliance) record(kind, name string, fields map[string]any) audit.Record {
	return audit.NewRecord(kind, kind+"/"+name, fields)
}

// Clients lists all clients by name.
func (a *Appliance) Clients(ctx context.Context) ([]store.Client, error) {
	return a.store.ListClients(ctx)
}

// Devices lists all devices by name.
func (a *Appliance) Devices(ctx context.Context) ([]store.Device, error) {
	return a.store.ListDevices(ctx)
}

// ClientNamed finds a client by name, or [store.ErrNotFound].
func (a *Appliance) ClientNamed(ctx context.Context, name string) (store.Client, error) {
	all, err := a.store.ListClients(ctx)
	return named(all, err, name, func(c store.Client) string { return c.Name })
}

// DeviceNamed finds a device by name, or [store.ErrNotFound].
func (a *Appliance) DeviceNamed(ctx context.Context, name string) (store.Device, error) {
	all, err := a.store.ListDevices(ctx)
	return named(all, err, name, func(d store.Device) string { return d.Name })
}

func named[T any](all []T, err error, name string, nameOf func(T) string) (found T, _ error) {
	if err != nil {
		return found, err
	}
	for _, one := range all {
		if nameOf(one) == name {
			return one, nil
		}
	}
	return found, fmt.Errorf("%q: %w", name, store.ErrNotFound)
}

// casTries is how often a change is tried again when somebody else was faster.
const casTries = 3

// SetClientStatus suspends, resumes or revokes a client. To ask for the status it
// has already is no error and no change. Errors wrap [store.ErrNotFound],
// [ErrFinal] or [store.ErrConflict].
func (a *Appliance) SetClientStatus(ctx context.Context, name string, to store.Status) (store.Client, error) {
	var err error
	for range casTries {
		var c store.Client
		if c, err = a.authentic(ctx, name); err != nil || c.Status == to {
			return c, err
		}
		if c.Status == store.Revoked {
			return c, fmt.Errorf("client %q: %w", name, ErrFinal)
		}
		c.Status, c.Version = to, c.Version+1
		err = a.store.UpdateClient(ctx, c, a.record(audit.KindClients, name, changed(to, c.Version)))
		if !errors.Is(err, store.ErrConflict) {
			return c, err
		}
	}
	return store.Client{}, err
}

// authentic is a client found by name whose record fits its seal: one that was changed
// outside of the appliance must not get a new seal by being suspended and resumed.
func (a *Appliance) authentic(ctx context.Context, name string) (store.Client, error) {
	c, err := a.ClientNamed(ctx, name)
	if err == nil && c.Status == 0 {
		err = fmt.Errorf("client %q: %w", name, ErrForged)
	}
	return c, err
}

// SetDeviceStatus works as SetClientStatus.
func (a *Appliance) SetDeviceStatus(ctx context.Context, name string, to store.Status) (store.Device, error) {
	var err error
	for range casTries {
		var d store.Device
		if d, err = a.DeviceNamed(ctx, name); err != nil || d.Status == to {
			return d, err
		}
		if d.Status == 0 {
			return d, fmt.Errorf("device %q: %w", name, ErrForged)
		}
		if d.Status == store.Revoked {
			return d, fmt.Errorf("device %q: %w", name, ErrFinal)
		}
		d.Status, d.Version = to, d.Version+1
		err = a.store.UpdateDevice(ctx, d, a.record(audit.KindDevices, name, changed(to, d.Version)))
		a.devices.forget(d.SPIFFEID)
		if !errors.Is(err, store.ErrConflict) {
			return d, err
		}
	}
	return store.Device{}, err
}

func changed(to store.Status, version uint64) map[string]any {
	return map[string]any{"event": to.String(), "version": version}
}

// Unlock sets a client's password guard back to zero.
func (a *Appliance) Unlock(ctx context.Context, name string) (store.Client, error) {
	c, err := a.authentic(ctx, name)
	if err != nil {
		return c, err
	}
	return c, a.store.Unlock(ctx, c.ID, audit.NewRecord(audit.KindUnlock, "client/"+name, map[string]any{"event": "unlocked"}))
}

// Guard is the state of a client's password guard.
func (a *Appliance) Guard(ctx context.Context, id protocol.ClientID) (store.Guard, error) {
	return a.store.Guard(ctx, id)
}

// Records lists audit records, at most limit of those after a sequence number.
func (a *Appliance) Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error) {
	return a.store.Records(ctx, after, limit)
}

// Overview is what an administrator sees first.
type Overview struct {
	Domain        string
	Root          protocol.PublicKey
	PolicyVersion uint64
	PolicyHash    protocol.PolicyHash
	Tally         store.Tally
}

// Overview reads the state of keys, policy and store.
func (a *Appliance) Overview(ctx context.Context) (Overview, error) {
	tally, err := a.store.Tally(ctx)
	active := a.policy.Load()
	return Overview{
		Domain: a.keys.Domain(), Root: a.keys.Root(), PolicyVersion: active.version, PolicyHash: active.wireHash(), Tally: tally,
	}, err
}
