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
	"countersign/protocol/enrol"
	"countersign/protocol/message"
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
	Life    time.Duration // device: how long administrators may countersign, as [Ask]
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
	if err := message.CheckText(i.Display, message.MaxNameBytes); err != nil {
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
func (a *Appliance) Invite(ctx context.Context, i Invite) (enrol.ActivationCode, time.Time, error) {
	i = i.withDefaults()
	if err := i.validate(); err != nil {
		return enrol.ActivationCode{}, time.Time{}, err
	}
	code := a.newCode()
	if i.Kind == store.KindDevice {
		c, err := a.Ask(ctx, i.ask(code))
		if err != nil {
			return enrol.ActivationCode{}, time.Time{}, err
		}
		result, err := c.done()
		expires, _ := result.(time.Time)
		return code, expires, err
	}
	expires, err := a.invite(ctx, i, store.Invitation{Code: hashOf(code)})
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

func (a *Appliance) newCode() enrol.ActivationCode {
	var random [13]byte
	_, _ = rand.Read(random[:]) // never fails, crypto/rand
	return enrol.NewActivationCode(a.keys.Root().RootHash(), random)
}

func hashOf(code enrol.ActivationCode) [32]byte { return sha256.Sum256([]byte(code.String())) }

// invite stores an invitation. The row has the SHA-256 of its code, and the change behind
// it if there is one.
func (a *Appliance) invite(ctx context.Context, i Invite, row store.Invitation) (expires time.Time, err error) {
	if i.Replace {
		if err := a.retire(ctx, i.Kind, i.Name); err != nil {
			return expires, err
		}
	}
	now := a.now().UTC()
	invitation := store.Invitation{
		Code: row.Code, Change: row.Change, Kind: i.Kind, Name: i.Name,
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
func (i Invite) ask(code enrol.ActivationCode) Ask {
	sum := hashOf(code)
	return Ask{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": i.Name, "display": i.Display, "floor": uint64(i.Floor), "ttl_s": uint64(i.TTL / time.Second),
		"replace": i.Replace, "code_sha256": sum[:],
	}, Life: i.Life}
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
// already, and is not revoked for that. Of another request it is not this one's.
func (a *Appliance) inviteDevice(ctx context.Context, c Change) (any, error) {
	i, code, err := invitedDevice(c.Parameters)
	if err != nil {
		return nil, err
	}
	made, err := a.store.Invitation(ctx, code)
	switch {
	case err == nil && made.Change != c.Hash.ID():
		return nil, fmt.Errorf("inviting device %q: %w", i.Name, store.ErrExists)
	case !errors.Is(err, store.ErrNotFound):
		return made.ExpiresAt, err
	}
	expires, err := a.invite(ctx, i, store.Invitation{Code: code, Change: c.Hash.ID()})
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
