package enrol

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/change/quorum"
	"countersign/appliance/change/requests"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
)

// Default and bound of an activation code's life.
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
	// Replace, for a lost phone or a stolen device, revokes the party of this name, if there is
	// one, and withdraws its open code.
	Replace bool
	Life    time.Duration // device: time for countersigning, as in [change.Draft]
}

func (i Invite) validate() error {
	if err := parties.CheckName(i.Name); err != nil {
		return err
	}
	switch {
	case i.TTL < 0 || i.TTL > MaxInvitation:
		return fmt.Errorf("%w: ttl %v: want at most %v", parties.ErrInput, i.TTL, MaxInvitation)
	case i.Kind == store.KindClient:
		return checkRoles(i.Roles)
	case i.Floor < 1 || i.Floor > 4:
		return fmt.Errorf("%w: floor %d: want 1 to 4", parties.ErrInput, i.Floor)
	}
	if err := message.CheckText(i.Display, message.MaxNameBytes); err != nil {
		return fmt.Errorf("%w: display name: %w", parties.ErrInput, err)
	}
	return nil
}

var roleName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

// checkRoles refuses a malformed name, and the role that only an accepted attestation gives.
func checkRoles(roles []string) error {
	for _, role := range roles {
		if !roleName.MatchString(role) || role == parties.RoleUV {
			return fmt.Errorf("%w: role %q: want 1 to 32 lower-case letters, digits, '.', '-' or '_', and not %q", parties.ErrInput, role, parties.RoleUV)
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

// Invite makes a single-use activation code, stores its hash and returns the code. With Replace
// it first revokes the party of that name, durably even if the invitation then fails. The
// invitation of a device is a change: if it waits for administrators, the error is a
// [*requests.Waiting], and the code is good once they have countersigned. Other errors wrap
// [parties.ErrInput], [store.ErrExists] or, with Replace, the errors of
// [parties.Parties.SetClientStatus].
func (s *Service) Invite(ctx context.Context, i Invite) (enrol.ActivationCode, time.Time, error) {
	i = i.withDefaults()
	if err := i.validate(); err != nil {
		return enrol.ActivationCode{}, time.Time{}, err
	}
	code := s.newCode()
	if i.Kind == store.KindDevice {
		c, err := s.requests.Ask(ctx, i.draft(code))
		if err != nil {
			return enrol.ActivationCode{}, time.Time{}, err
		}
		result, err := c.Done()
		expires, _ := result.(time.Time)
		return code, expires, err
	}
	expires, err := s.invite(ctx, i, store.Invitation{Code: hashOf(code)})
	return code, expires, err
}

// PreviewInvite returns the change request that inviting a device would make, and stores nothing.
func (s *Service) PreviewInvite(ctx context.Context, i Invite) (requests.Change, error) {
	i = i.withDefaults()
	if err := i.validate(); err != nil {
		return requests.Change{}, err
	}
	return s.requests.Preview(ctx, i.draft(s.newCode()))
}

func (s *Service) newCode() enrol.ActivationCode {
	var random [13]byte
	_, _ = rand.Read(random[:]) // never fails, crypto/rand
	return enrol.NewActivationCode(s.keys.Root().RootHash(), random)
}

func hashOf(code enrol.ActivationCode) [32]byte { return sha256.Sum256([]byte(code.String())) }

// invite stores an invitation. row has the hash of the code, and the change request behind it if
// there is one.
func (s *Service) invite(ctx context.Context, i Invite, row store.Invitation) (expires time.Time, err error) {
	if i.Replace {
		if err := s.retire(ctx, i.Kind, i.Name); err != nil {
			return expires, err
		}
	}
	now := s.now().UTC()
	invitation := store.Invitation{
		Code: row.Code, Change: row.Change, Kind: i.Kind, Name: i.Name,
		Display: i.Display, Floor: i.Floor, Roles: i.Roles, Replace: i.Replace, CreatedAt: now, ExpiresAt: now.Add(i.TTL),
	}
	fields := map[string]any{"event": "invited", "expires_at": invitation.ExpiresAt.Unix()}
	if i.Replace {
		fields["replace"] = true
	}
	rec := parties.Record(string(i.Kind), i.Name, fields)
	if err := s.store.Invite(ctx, invitation, rec); err != nil {
		return expires, fmt.Errorf("inviting %s %q: %w", i.Kind, i.Name, err)
	}
	return invitation.ExpiresAt, nil
}

// draft drafts the change request that invites a device.
func (i Invite) draft(code enrol.ActivationCode) change.Draft {
	sum := hashOf(code)
	return change.Draft{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": i.Name, "display": i.Display, "floor": uint64(i.Floor), "ttl_s": uint64(i.TTL / time.Second),
		"replace": i.Replace, "code_sha256": sum[:],
	}, Life: i.Life}
}

// invitedDevice reads the parameters that draft writes.
func invitedDevice(p change.Parameters) (i Invite, code [32]byte, err error) {
	i = Invite{
		Kind: store.KindDevice, Name: p.Text("name"), Display: p.Text("display"), Floor: protocol.Level(min(p.Number("floor"), 255)),
		TTL: time.Duration(min(p.Number("ttl_s"), uint64(MaxInvitation/time.Second)+1)) * time.Second, Replace: p.Truth("replace"),
	}
	if sum := p.Bytes("code_sha256"); len(sum) == len(code) {
		return i, [32]byte(sum), i.validate()
	}
	return i, code, fmt.Errorf("%w: code_sha256: want 32 bytes", parties.ErrInput)
}

// inviteBase returns the device that has the name, if there is one.
func (s *Service) inviteBase(ctx context.Context, p change.Parameters) (any, error) {
	i, _, err := invitedDevice(p)
	if err != nil {
		return nil, err
	}
	d, err := s.parties.DeviceNamed(ctx, i.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err == nil && d.Status != store.Revoked && !i.Replace:
		return nil, fmt.Errorf("inviting device %q: %w", i.Name, store.ErrExists)
	}
	return []any{d.ID[:], d.Version, uint64(d.Status)}, err
}

// inviteDevice stores the invitation unless this request has stored it: the device may be
// enrolled already and must not be revoked. It refuses the code of another request.
func (s *Service) inviteDevice(ctx context.Context, id change.ID, p change.Parameters) (any, error) {
	i, code, err := invitedDevice(p)
	if err != nil {
		return nil, err
	}
	made, err := s.store.Invitation(ctx, code)
	switch {
	case err == nil && made.Change != id:
		return nil, fmt.Errorf("inviting device %q: %w", i.Name, store.ErrExists)
	case !errors.Is(err, store.ErrNotFound):
		return made.ExpiresAt, err
	}
	expires, err := s.invite(ctx, i, store.Invitation{Code: code, Change: id})
	return expires, err
}

// recordOf describes a device's invitation, so that its change request can be verified.
func recordOf(i store.Invitation) quorum.Record {
	return quorum.Record{
		What: "invitation of device " + i.Name, Change: i.Change, Kind: policy.DeviceInvite,
		Fits: func(p change.Parameters) bool {
			asked, code, err := invitedDevice(p)
			return err == nil && code == i.Code && asked.Kind == i.Kind && asked.Name == i.Name && asked.Display == i.Display && asked.Floor == i.Floor
		},
	}
}

// retire revokes the party of a name, if there is one.
func (s *Service) retire(ctx context.Context, kind store.Kind, name string) error {
	var err error
	if kind == store.KindClient {
		_, err = s.parties.SetClientStatus(ctx, name, store.Revoked)
	} else {
		_, err = s.parties.SetDeviceStatus(ctx, name, store.Revoked)
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
