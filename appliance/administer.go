package appliance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
)

// Sentinels of the Administer door.
var (
	// ErrInput: the request is wrong; the message says how.
	ErrInput = errors.New("bad request")
	// ErrForged: the client's row was changed outside of the appliance, so that
	// it is nobody's. Enrol the person anew under another name.
	ErrForged = errors.New("the record was changed outside of the appliance and is not trusted")
	// ErrFinal: the party was revoked, which nothing undoes.
	ErrFinal = errors.New("revoked is final: invite it anew, in place of the revoked one")
)

// Defaults and bounds of an activation code's life.
const (
	DefaultInvitation = 24 * time.Hour
	MaxInvitation     = 30 * 24 * time.Hour
)

// Invite asks for an activation code.
type Invite struct {
	Kind    store.Kind
	Name    string
	TTL     time.Duration  // 0: DefaultInvitation
	Display string         // device: at most 24 bytes; default Name
	Floor   protocol.Level // device; default 1
	Roles   []string       // client
	// Replace is for a lost phone or a stolen device: the party of this name, if
	// there is one, is revoked, and an open code for it is withdrawn.
	Replace bool
}

// maxName keeps a name fit for SPIFFE IDs, file names and tables.
const maxName = 64

func checkName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	switch {
	case idLike.MatchString(name):
		return fmt.Errorf("%w: name %q looks like an id", ErrInput, name)
	case name == "" || len(name) > maxName || strings.Trim(name, allowed) != "" || strings.Trim(name, ".") == "":
		return fmt.Errorf("%w: name %q: want 1 to %d letters, digits, '.', '-' or '_'", ErrInput, name, maxName)
	}
	return nil
}

func (i Invite) validate() error {
	if err := checkName(i.Name); err != nil {
		return err
	}
	switch {
	case i.TTL < 0 || i.TTL > MaxInvitation:
		return fmt.Errorf("%w: ttl %v: want at most %v", ErrInput, i.TTL, MaxInvitation)
	case i.Kind == store.KindClient:
		return checkRoles(i.Roles)
	case i.Floor < 1 || i.Floor > 4:
		return fmt.Errorf("%w: floor %d: want 1 to 4", ErrInput, i.Floor)
	}
	if err := protocol.CheckText(i.Display, protocol.MaxNameBytes); err != nil {
		return fmt.Errorf("%w: display name: %w", ErrInput, err)
	}
	return nil
}

// idLike names would be taken for ids in audit records.
var idLike = regexp.MustCompile(`^[0-9a-f]{16}$`)

var roleName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

// checkRoles refuses what is not a role's name, and the role that only an
// accepted attestation gives.
func checkRoles(roles []string) error {
	for _, role := range roles {
		if !roleName.MatchString(role) || role == RoleUV {
			return fmt.Errorf("%w: role %q: want 1 to 32 lower-case letters, digits, '.', '-' or '_', and not %q", ErrInput, role, RoleUV)
		}
	}
	return nil
}

func (i Invite) withDefaults() Invite {
	if i.TTL == 0 {
		i.TTL = DefaultInvitation
	}
	if i.Kind == store.KindDevice {
		if i.Display == "" {
			i.Display = i.Name
		}
		i.Floor = max(i.Floor, 1)
	}
	return i
}

// Invite makes a single-use activation code and keeps its hash. The code is
// nowhere but in the answer. With Replace the party of that name is revoked first,
// durably, even should the invitation fail then. That of a device is a change: where it
// waits for administrators the error is a [*Waiting], and the code is good once they
// have countersigned. Other errors wrap [ErrInput], [store.ErrExists] or, with Replace,
// those of SetClientStatus.
func (a *Appliance) Invite(ctx context.Context, i Invite) (protocol.ActivationCode, time.Time, error) {
	i = i.withDefaults()
	if err := i.validate(); err != nil {
		return protocol.ActivationCode{}, time.Time{}, err
	}
	code := a.newCode()
	if i.Kind == store.KindDevice {
		c, err := a.Ask(ctx, i.ask(code))
		if err != nil {
			return protocol.ActivationCode{}, time.Time{}, err
		}
		result, err := c.done()
		expires, _ := result.(time.Time)
		return code, expires, err
	}
	expires, err := a.invite(ctx, i, hashOf(code))
	return code, expires, err
}

// PreviewInvite says what an invitation would come to, and does nothing.
func (a *Appliance) PreviewInvite(ctx context.Context, i Invite) (Change, error) {
	i = i.withDefaults()
	if err := i.validate(); err != nil {
		return Change{}, err
	}
	return a.Preview(ctx, i.ask(a.newCode()))
}

func (a *Appliance) newCode() protocol.ActivationCode {
	var random [13]byte
	_, _ = rand.Read(random[:]) // never fails, crypto/rand
	return protocol.NewActivationCode(a.keys.Root().RootHash(), random)
}

func hashOf(code protocol.ActivationCode) [32]byte { return sha256.Sum256([]byte(code.String())) }

// invite stores an invitation by the SHA-256 of its code.
func (a *Appliance) invite(ctx context.Context, i Invite, code [32]byte) (expires time.Time, err error) {
	if i.Replace {
		if err := a.retire(ctx, i.Kind, i.Name); err != nil {
			return expires, err
		}
	}
	now := a.now().UTC()
	invitation := store.Invitation{
		Code: code, Kind: i.Kind, Name: i.Name,
		Display: i.Display, Floor: i.Floor, Roles: i.Roles, Replace: i.Replace, CreatedAt: now, ExpiresAt: now.Add(i.TTL),
	}
	fields := map[string]any{"event": "invited", "expires_at": invitation.ExpiresAt.Unix()}
	if i.Replace {
		fields["replace"] = true
	}
	rec := a.record(string(i.Kind), i.Name, fields)
	if err := a.store.Invite(ctx, invitation, rec); err != nil {
		return expires, fmt.Errorf("inviting %s %q: %w", i.Kind, i.Name, err)
	}
	return invitation.ExpiresAt, nil
}

// ask is the change that inviting a device is.
func (i Invite) ask(code protocol.ActivationCode) Ask {
	sum := hashOf(code)
	return Ask{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": i.Name, "display": i.Display, "floor": uint64(i.Floor), "ttl_s": uint64(i.TTL / time.Second),
		"replace": i.Replace, "code_sha256": sum[:],
	}}
}

// invitedDevice reads the parameters that ask writes.
func invitedDevice(p change.Parameters) (i Invite, code [32]byte, err error) {
	i = Invite{
		Kind: store.KindDevice, Name: p.Text("name"), Display: p.Text("display"), Floor: protocol.Level(min(p.Number("floor"), 255)),
		TTL: time.Duration(min(p.Number("ttl_s"), uint64(MaxInvitation/time.Second)+1)) * time.Second, Replace: p.Truth("replace"),
	}
	if sum := p.Bytes("code_sha256"); len(sum) == len(code) {
		return i, [32]byte(sum), i.validate()
	}
	return i, code, fmt.Errorf("%w: code_sha256: want 32 bytes", ErrInput)
}

// inviteBase is the device that has the name, if there is one.
func (a *Appliance) inviteBase(ctx context.Context, p change.Parameters) (any, error) {
	i, _, err := invitedDevice(p)
	if err != nil {
		return nil, err
	}
	d, err := a.DeviceNamed(ctx, i.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err == nil && d.Status != store.Revoked && !i.Replace:
		return nil, fmt.Errorf("inviting device %q: %w", i.Name, store.ErrExists)
	}
	return []any{d.ID[:], d.Version, uint64(d.Status)}, err
}

// inviteDevice is found done by its code: the party of that name may be enrolled
// already, and is not revoked for that.
func (a *Appliance) inviteDevice(ctx context.Context, p change.Parameters) (any, error) {
	i, code, err := invitedDevice(p)
	if err != nil {
		return nil, err
	}
	if made, err := a.store.Invitation(ctx, code); !errors.Is(err, store.ErrNotFound) {
		return made.ExpiresAt, err
	}
	expires, err := a.invite(ctx, i, code)
	return expires, err
}

// retire revokes the party of a name, if there is one.
func (a *Appliance) retire(ctx context.Context, kind store.Kind, name string) error {
	var err error
	if kind == store.KindClient {
		_, err = a.SetClientStatus(ctx, name, store.Revoked)
	} else {
		_, err = a.SetDeviceStatus(ctx, name, store.Revoked)
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// record makes an audit record about a party; kind is a Kind constant of store.
func (a *Appliance) record(kind, name string, fields map[string]any) store.Record {
	return store.NewRecord(kind, kind+"/"+name, fields)
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
		if c, err = a.authenticate(ctx, c); err != nil {
			return c, err
		}
		err = a.store.UpdateClient(ctx, c, a.record(store.KindClients, name, changed(to, c.Version, c.MAC)))
		if !errors.Is(err, store.ErrConflict) {
			return c, err
		}
	}
	return store.Client{}, err
}

// authentic is a client found by name whose record MAC fits: a row that was changed
// outside of the appliance must not get a new MAC by being suspended and resumed.
func (a *Appliance) authentic(ctx context.Context, name string) (store.Client, error) {
	c, err := a.ClientNamed(ctx, name)
	if err != nil {
		return c, err
	}
	c, err = a.client(ctx, c.ID)
	if errors.Is(err, store.ErrNotFound) {
		return c, fmt.Errorf("client %q: %w", name, ErrForged)
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
		if d.Status == store.Revoked {
			return d, fmt.Errorf("device %q: %w", name, ErrFinal)
		}
		d.Status, d.Version = to, d.Version+1
		err = a.store.UpdateDevice(ctx, d, a.record(store.KindDevices, name, changed(to, d.Version, nil)))
		a.devices.forget(d.SPIFFEID)
		if !errors.Is(err, store.ErrConflict) {
			return d, err
		}
	}
	return store.Device{}, err
}

func changed(to store.Status, version uint64, mac []byte) map[string]any {
	fields := map[string]any{"event": to.String(), "version": version}
	if mac != nil {
		fields["mac"] = mac
	}
	return fields
}

// Unlock sets a client's password guard back to zero.
func (a *Appliance) Unlock(ctx context.Context, name string) (store.Client, error) {
	c, err := a.ClientNamed(ctx, name)
	if err != nil {
		return c, err
	}
	return c, a.store.Unlock(ctx, c.ID, store.NewRecord(store.KindUnlock, "client/"+name, map[string]any{"event": "unlocked"}))
}

// Guard is the state of a client's password guard.
func (a *Appliance) Guard(ctx context.Context, id protocol.ClientID) (store.Guard, error) {
	return a.store.Guard(ctx, id)
}

// Records lists audit records, at most limit of those after a sequence number.
func (a *Appliance) Records(ctx context.Context, after uint64, limit int) ([]store.Record, error) {
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
