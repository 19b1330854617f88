package parties

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Errors of an administrator's request.
var (
	// ErrInput: the request is wrong; the message says how.
	ErrInput = errors.New("bad request")
	// ErrFinal: the party was revoked, which cannot be undone.
	ErrFinal = errors.New("revoked permanently")
)

// final returns an error that wraps [ErrFinal].
func final(noun, name string) error {
	return fmt.Errorf("%s %q was %w: invite it anew with --replace", noun, name, ErrFinal)
}

// worded is an error that reads as text, and wraps another error without repeating it.
type worded struct {
	text    string
	wrapped error
}

func (w worded) Error() string { return w.text }

func (w worded) Unwrap() error { return w.wrapped }

// Absent returns an error that wraps [store.ErrNotFound]: no client, device or administrator has the name.
func Absent(noun, name string) error { return Missing(fmt.Sprintf("no %s is called %q", noun, name)) }

// Missing returns an error that reads as text and wraps [store.ErrNotFound].
func Missing(text string) error { return worded{text, store.ErrNotFound} }

// Taken returns an error that reads as text and wraps [store.ErrExists].
func Taken(text string) error { return worded{text, store.ErrExists} }

// Record returns an audit record about a party or another named object, with the actor of ctx;
// kind is a Kind constant of package store.
func Record(ctx context.Context, kind, name string, fields map[string]any) audit.Record {
	return audit.Act(ctx, kind, kind+"/"+name, fields)
}

// Changed returns the fields of an audit record for a new status.
func Changed(to store.Status, version uint64) map[string]any {
	return map[string]any{"event": to.String(), "version": version}
}

// changedParty is Changed for a client or a device, with its id: another party may get its name.
func changedParty(to store.Status, version uint64, id []byte) map[string]any {
	fields := Changed(to, version)
	fields["id"] = id
	return fields
}

// maxName keeps a name fit for SPIFFE IDs, file names and tables.
const maxName = 64

// idLike matches names that could be mistaken for ids in audit records.
var idLike = regexp.MustCompile(`^[0-9a-f]{16}$`)

// CheckName returns [ErrInput] if a name is not fit for a client, a device or an
// administrator.
func CheckName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	switch {
	case idLike.MatchString(name):
		return fmt.Errorf("%w: name %q looks like an id: choose one that is not 16 hexadecimal digits", ErrInput, name)
	case name == "" || len(name) > maxName || strings.Trim(name, allowed) != "" || strings.Trim(name, ".") == "":
		return fmt.Errorf("%w: name %q: want 1 to %d letters, digits, '.', '-' or '_'", ErrInput, name, maxName)
	}
	return nil
}

// Clients lists all clients by name.
func (p *Parties) Clients(ctx context.Context) ([]store.Client, error) {
	return p.store.ListClients(ctx)
}

// Devices lists all devices by name.
func (p *Parties) Devices(ctx context.Context) ([]store.Device, error) {
	return p.store.ListDevices(ctx)
}

// ClientNamed finds a client by name, or returns [store.ErrNotFound].
func (p *Parties) ClientNamed(ctx context.Context, name string) (store.Client, error) {
	all, err := p.store.ListClients(ctx)
	return Named(all, err, Absent("client", name), func(c store.Client) bool { return c.Name == name })
}

// DeviceNamed finds a device by name, or returns [store.ErrNotFound].
func (p *Parties) DeviceNamed(ctx context.Context, name string) (store.Device, error) {
	all, err := p.store.ListDevices(ctx)
	return Named(all, err, Absent("device", name), func(d store.Device) bool { return d.Name == name })
}

// Named finds the item that has a name in a list that was just read with err. Without one it returns absent.
func Named[T any](all []T, err, absent error, has func(T) bool) (found T, _ error) {
	if err != nil {
		return found, err
	}
	if i := slices.IndexFunc(all, has); i >= 0 {
		return all[i], nil
	}
	return found, absent
}

// tries is how often Retry calls its function.
const tries = 3

// Retry calls update again, at most three times in all, while it returns
// [store.ErrConflict] because another writer was faster.
func Retry(update func() error) (err error) {
	for range tries {
		if err = update(); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return err
}

// SetClientStatus suspends, resumes or revokes a client. A client that already has the
// status is left as it is, without an error. Errors wrap [store.ErrNotFound], [ErrFinal] or
// [store.ErrConflict].
func (p *Parties) SetClientStatus(ctx context.Context, name string, to store.Status) (c store.Client, err error) {
	err = Retry(func() (err error) {
		if c, err = p.authentic(ctx, name); err != nil || c.Status == to {
			return err
		}
		if c.Status == store.Revoked {
			return final("client", name)
		}
		c.Status, c.Version = to, c.Version+1
		return p.store.UpdateClient(ctx, c, Record(ctx, audit.KindClients, name, changedParty(to, c.Version, c.ID[:])))
	})
	return c, err
}

// authentic finds a client by name whose record fits its seal. A record that was changed
// outside of the appliance must not get a new seal by being suspended and resumed.
func (p *Parties) authentic(ctx context.Context, name string) (store.Client, error) {
	c, err := p.ClientNamed(ctx, name)
	if err == nil && c.Status == 0 {
		err = fmt.Errorf("client %q: %w", name, store.ErrForged)
	}
	return c, err
}

// SetDeviceStatus works like SetClientStatus.
func (p *Parties) SetDeviceStatus(ctx context.Context, name string, to store.Status) (d store.Device, err error) {
	err = Retry(func() (err error) {
		if d, err = p.DeviceNamed(ctx, name); err != nil || d.Status == to {
			return err
		}
		switch d.Status {
		case 0:
			return fmt.Errorf("device %q: %w", name, store.ErrForged)
		case store.Revoked:
			return final("device", name)
		}
		d.Status, d.Version = to, d.Version+1
		defer p.Forget(d.SPIFFEID)
		return p.store.UpdateDevice(ctx, d, Record(ctx, audit.KindDevices, name, changedParty(to, d.Version, d.ID[:])))
	})
	return d, err
}

// Unlock sets a client's password guard back to zero.
func (p *Parties) Unlock(ctx context.Context, name string) (store.Client, error) {
	c, err := p.authentic(ctx, name)
	if err != nil {
		return c, err
	}
	fields := map[string]any{"event": "unlocked", "id": c.ID[:]}
	return c, p.store.Unlock(ctx, c.ID, audit.Act(ctx, audit.KindUnlock, "client/"+name, fields))
}

// Guard returns the state of a client's password guard.
func (p *Parties) Guard(ctx context.Context, id protocol.ClientID) (store.Guard, error) {
	return p.store.Guard(ctx, id)
}
