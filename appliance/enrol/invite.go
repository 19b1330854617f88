package enrol

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
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
	Roles   []string       // client; not [store.RoleUV]; default none
	// Replace, for a lost phone or a stolen device, revokes the party of this name, if there is
	// one, and withdraws its open code. It keeps their display name, floor and roles, unless this invitation has
	// others. Empty Roles that are not nil give none.
	Replace bool
	Life    time.Duration // time for countersigning, as in [change.Draft]

	was *granted // what it replaces; nil: nothing
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
		if !roleName.MatchString(role) || role == store.RoleUV {
			return fmt.Errorf("%w: role %q: want 1 to 32 lower-case letters, digits, '.', '-' or '_', and not %q",
				parties.ErrInput, role, store.RoleUV)
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
// it first revokes the party of that name, durably even if the invitation then fails. If the
// invitation waits for administrators, the error is a [*requests.Waiting], and the code is good once
// they have countersigned. Other errors wrap [parties.ErrInput], [store.ErrExists] or, with Replace,
// the errors of [parties.Parties.SetClientStatus].
func (s *Service) Invite(ctx context.Context, i Invite) (enrol.ActivationCode, time.Time, error) {
	i, err := s.Complete(ctx, i)
	if err != nil {
		return enrol.ActivationCode{}, time.Time{}, err
	}
	code := s.newCode()
	c, err := s.requests.Ask(ctx, i.draft(code))
	if err != nil {
		return enrol.ActivationCode{}, time.Time{}, err
	}
	result, err := c.Done()
	expires, _ := result.(time.Time)
	return code, expires, err
}

// PreviewInvite returns the change request that an invitation would make, and stores nothing.
func (s *Service) PreviewInvite(ctx context.Context, i Invite) (requests.Change, error) {
	i, err := s.Complete(ctx, i)
	if err != nil {
		return requests.Change{}, err
	}
	return s.requests.Preview(ctx, i.draft(s.newCode()))
}

// Complete returns an invitation with everything that its code would grant: what it keeps, and the defaults. It returns
// the errors of Invite.
func (s *Service) Complete(ctx context.Context, i Invite) (_ Invite, err error) {
	if i.Replace {
		i, err = s.keeping(ctx, i)
	}
	if err != nil {
		return i, err
	}
	i = i.withDefaults()
	return i, i.validate()
}

func (s *Service) newCode() enrol.ActivationCode {
	var random [13]byte
	_, _ = rand.Read(random[:]) // never fails, crypto/rand
	return enrol.NewActivationCode(s.keys.Root().RootHash(), random)
}

func hashOf(code enrol.ActivationCode) [32]byte { return sha256.Sum256([]byte(code.String())) }

// inviting are the kinds of request that invite a party, and that replace one.
var inviting = map[store.Kind]struct{ invite, replace policy.Kind }{
	store.KindClient: {policy.ClientInvite, policy.ClientReplace},
	store.KindDevice: {policy.DeviceInvite, policy.DeviceReplace},
}

// draft drafts the change request of an invitation.
func (i Invite) draft(code enrol.ActivationCode) change.Draft {
	sum := hashOf(code)
	d := change.Draft{Kind: inviting[i.Kind].invite, Life: i.Life, Parameters: change.Parameters{
		"name": i.Name, "ttl_s": uint64(i.TTL / time.Second), "code_sha256": sum[:],
	}}
	if i.Replace {
		d.Kind = inviting[i.Kind].replace
	}
	if i.Kind == store.KindDevice {
		d.Parameters["display"], d.Parameters["floor"] = i.Display, uint64(i.Floor)
	} else {
		d.Parameters["roles"] = append([]string{}, i.Roles...)
	}
	if i.was != nil {
		i.was.describe(d.Parameters, i.Kind)
	}
	return d
}

// invitationOf reads the parameters that draft writes. A device.invite of an earlier release says
// itself whether it replaces.
func invitationOf(k policy.Kind, p change.Parameters) (i Invite, code [32]byte, err error) {
	i = Invite{
		Kind: store.KindClient, Name: p.Text("name"), Roles: p.Texts("roles"),
		TTL: time.Duration(min(p.Number("ttl_s"), uint64(MaxInvitation/time.Second)+1)) * time.Second,
	}
	if k == policy.DeviceInvite || k == policy.DeviceReplace {
		i.Kind, i.Roles = store.KindDevice, nil
		i.Display, i.Floor = p.Text("display"), protocol.Level(min(p.Number("floor"), 255))
	}
	i.Replace = k == inviting[i.Kind].replace || p.Truth("replace")
	if sum := p.Bytes("code_sha256"); len(sum) == len(code) {
		return i, [32]byte(sum), i.validate()
	}
	return i, code, fmt.Errorf("%w: code_sha256: want 32 bytes", parties.ErrInput)
}

// invites returns the effect of a kind of request that invites.
func (s *Service) invites(k policy.Kind) requests.Effect {
	return requests.Effect{
		Base: func(ctx context.Context, p change.Parameters) (any, error) {
			i, _, err := invitationOf(k, p)
			if err == nil {
				err = s.checkWas(ctx, i, p)
			}
			if err != nil {
				return nil, err
			}
			return s.named(ctx, i)
		},
		Do: func(ctx context.Context, id change.ID, p change.Parameters) (any, error) {
			i, code, err := invitationOf(k, p)
			if err != nil {
				return nil, err
			}
			expires, err := s.invite(ctx, i, store.Invitation{Code: code, Change: id})
			return expires, err
		},
	}
}

// named returns the state that an invitation is based on: who has its name, and the number of an open
// code for it. Without Replace it refuses both, as the store would once administrators have signed.
func (s *Service) named(ctx context.Context, i Invite) (any, error) {
	party, err := s.namesake(ctx, i)
	if err != nil {
		return nil, err
	}
	open, err := s.OpenFor(ctx, i.Kind, i.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return party, nil
	case err == nil && !i.Replace:
		return nil, parties.Taken(fmt.Sprintf("%s %q has an activation code that can still be used", i.Kind, i.Name))
	}
	return []any{party, open.Number}, err
}

// namesake returns the party that has the name of an invitation, if there is one. It refuses one unless
// the invitation replaces it: a party that is revoked keeps its name.
func (s *Service) namesake(ctx context.Context, i Invite) (any, error) {
	var id []byte
	var version uint64
	var status store.Status
	var err error
	if i.Kind == store.KindClient {
		var c store.Client
		c, err = s.parties.ClientNamed(ctx, i.Name)
		id, version, status = c.ID[:], c.Version, c.Status
	} else {
		var d store.Device
		d, err = s.parties.DeviceNamed(ctx, i.Name)
		id, version, status = d.ID[:], d.Version, d.Status
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err == nil && !i.Replace:
		return nil, parties.Taken(fmt.Sprintf("%s %q exists already and is %s", i.Kind, i.Name, status))
	}
	return []any{id, version, uint64(status)}, err
}

// invite stores an invitation unless its request has stored it: the party may be enrolled already
// and must not be revoked. It refuses the code of another request. row has the hash of the code, and
// the request.
func (s *Service) invite(ctx context.Context, i Invite, row store.Invitation) (expires time.Time, err error) {
	made, err := s.store.Invitation(ctx, row.Code)
	switch {
	case err == nil && made.Change != row.Change:
		return expires, fmt.Errorf("inviting %s %q: %w", i.Kind, i.Name, store.ErrExists)
	case !errors.Is(err, store.ErrNotFound):
		return made.ExpiresAt, err
	}
	if i.Replace {
		if err := s.retire(ctx, i.Kind, i.Name); err != nil {
			return expires, err
		}
	}
	now := s.now().UTC()
	row.Kind, row.Name, row.Display, row.Floor, row.Roles, row.Replace = i.Kind, i.Name, i.Display, i.Floor, i.Roles, i.Replace
	row.CreatedAt, row.ExpiresAt = now, now.Add(i.TTL)
	fields := grantOf(row, "invited")
	fields["expires_at"], fields["replace"] = row.ExpiresAt.Unix(), i.Replace
	if err := s.store.Invite(ctx, row, parties.Record(ctx, string(i.Kind), i.Name, fields)); err != nil {
		return expires, fmt.Errorf("inviting %s %q: %w", i.Kind, i.Name, err)
	}
	return row.ExpiresAt, nil
}

// grantOf returns the fields of an audit record that say what an invitation grants.
func grantOf(i store.Invitation, event string) map[string]any {
	fields := map[string]any{"event": event}
	if i.Change != (change.ID{}) {
		fields["change"] = i.Change[:]
	}
	if i.Kind == store.KindDevice {
		fields["display"], fields["floor"] = i.Display, uint64(i.Floor)
	} else {
		fields["roles"] = append([]string{}, i.Roles...)
	}
	return fields
}

// recordOf describes an invitation, so that its change request can be verified. The release before
// invited clients without a request. Such a code is good until it expires, unless the policy now
// requires more than one administrator. The row does not say whether the code replaces a client, so
// it takes the quorum of a replacement, which is never below that of an invitation.
func (s *Service) recordOf(i store.Invitation) quorum.Record {
	k := inviting[i.Kind]
	return quorum.Record{
		What: fmt.Sprintf("invitation of %s %s", i.Kind, i.Name), Change: i.Change, Kinds: []policy.Kind{k.invite, k.replace},
		Free: i.Kind == store.KindClient && s.rules.Active().Quorum(policy.ClientReplace).Administrators == 1,
		Fits: func(p change.Parameters) bool {
			asked, code, err := invitationOf(k.invite, p)
			return err == nil && code == i.Code && asked.Name == i.Name && asked.Display == i.Display && asked.Floor == i.Floor &&
				slices.Equal(asked.Roles, i.Roles)
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
