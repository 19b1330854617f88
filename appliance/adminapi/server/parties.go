package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/enrol"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/protocol"
)

func (s *Server) bindParties(m *mux) {
	r, a := adminapi.Routes, s.Appliance
	bind(m, r.ClientList, s.clients)
	bind(m, r.ClientShow, s.showClient)
	bindPreviewed(m, r.ClientUnlock, s.giveBackClient(a.Enrol.DraftUnlock))
	bind(m, r.ClientSuspend, enrolled(s, store.KindClient, s.client(to(a.Parties.SetClientStatus, store.Suspended))))
	bindPreviewed(m, r.ClientResume, s.giveBackClient(a.Enrol.DraftResumeClient))
	bind(m, r.ClientRevoke, s.revokeClient)
	bindPreviewed(m, r.ClientInvite, s.invite(store.KindClient))
	bind(m, r.DeviceList, s.devices)
	bind(m, r.DeviceShow, s.showDevice)
	bind(m, r.DeviceSuspend, enrolled(s, store.KindDevice, one(to(a.Parties.SetDeviceStatus, store.Suspended), deviceJSON)))
	bindPreviewed(m, r.DeviceResume, s.resumeDevice)
	bind(m, r.DeviceRevoke, s.revokeDevice)
	bindPreviewed(m, r.DeviceInvite, s.invite(store.KindDevice))
}

// to returns a function that sets one status.
func to[T any](
	set func(context.Context, string, store.Status) (T, error), status store.Status,
) func(context.Context, string) (T, error) {
	return func(ctx context.Context, name string) (T, error) { return set(ctx, name, status) }
}

func (s *Server) status(r *http.Request, _ adminapi.None) (adminapi.Status, error) {
	o, err := s.Appliance.Overview(r.Context())
	return adminapi.Status{
		TrustDomain: o.Domain, RootKey: o.Root.String(), PolicyVersion: o.PolicyVersion, PolicyHash: o.PolicyHash.String(),
		HSM: s.HSM.Summary(), Counts: adminapi.Counts(o.Tally), OpenCodes: o.OpenCodes, Uptime: time.Since(s.StartedAt).Seconds(),
	}, err
}

// invited is the handler of an invitation.
type invited = func(r *http.Request, body adminapi.Invite) (*adminapi.Change, adminapi.Invited, error)

func (s *Server) invite(kind store.Kind) invited {
	return func(r *http.Request, body adminapi.Invite) (*adminapi.Change, adminapi.Invited, error) {
		i, err := invitation(r, kind, body)
		if err == nil {
			i, err = s.Appliance.Enrol.Complete(r.Context(), i)
		}
		switch {
		case err != nil:
			return nil, adminapi.Invited{}, err
		case body.DryRun:
			c, err := s.Appliance.Enrol.PreviewInvite(r.Context(), i)
			preview := changeJSON(c)
			return &preview, adminapi.Invited{}, err
		}
		code, expires, err := s.Appliance.Enrol.Invite(r.Context(), i)
		made := adminapi.Invited{
			Name: i.Name, Kind: string(kind), ActivationCode: code.String(), ExpiresAt: expires,
			Roles: i.Roles, Display: i.Display, Floor: uint8(i.Floor),
		}
		if errors.Is(err, requests.ErrQuorum) {
			err = &invitedLater{error: err, Invited: made}
		}
		return nil, made, err
	}
}

func invitation(r *http.Request, kind store.Kind, body adminapi.Invite) (i enrol.Invite, err error) {
	const most = int64(enrol.MaxInvitation / time.Second)
	if body.TTLSeconds < 0 || body.TTLSeconds > most {
		return i, fmt.Errorf("%w: ttl_s %d: want at most %d, which is %v", parties.ErrInput, body.TTLSeconds, most, enrol.MaxInvitation)
	}
	life, err := lifeOf(r)
	return enrol.Invite{
		Kind: kind, Name: r.PathValue("name"), TTL: time.Duration(body.TTLSeconds) * time.Second, Display: body.Display,
		Floor: protocol.Level(body.Floor), Roles: body.Roles, Replace: body.Replace, Life: life,
	}, err
}

// invitedLater is the error of an invitation that waits for administrators. It carries the code.
type invitedLater struct {
	error
	adminapi.Invited
}

func (i *invitedLater) Unwrap() error { return i.error }

func (s *Server) clients(r *http.Request, _ adminapi.None) ([]adminapi.Client, error) {
	all, err := s.Appliance.Parties.Clients(r.Context())
	out := make([]adminapi.Client, len(all))
	for i := range all {
		if err == nil {
			out[i], err = s.clientJSON(r.Context(), all[i])
		}
	}
	open, openErr := s.Appliance.Enrol.Open(r.Context(), store.KindClient)
	return append(out, each(open, invitedClient)...), errors.Join(err, openErr)
}

// client answers with the client that get returns.
func (s *Server) client(get func(context.Context, string) (store.Client, error)) handler[adminapi.None, adminapi.Client] {
	return func(r *http.Request, _ adminapi.None) (adminapi.Client, error) {
		c, err := get(r.Context(), r.PathValue("name"))
		if err != nil {
			return adminapi.Client{}, err
		}
		return s.clientJSON(r.Context(), c)
	}
}

func (s *Server) clientJSON(ctx context.Context, c store.Client) (adminapi.Client, error) {
	guard, err := s.Appliance.Parties.Guard(ctx, c.ID)
	if err != nil {
		return adminapi.Client{}, err
	}
	out := adminapi.Client{
		Name: c.Name, ID: c.ID.String(), Status: c.Status.String(), SigningKey: c.SigningKey.String(),
		Roles: append([]string{}, c.Roles...), Version: c.Version, Highest: c.Highest, CreatedAt: c.CreatedAt,
		Password: adminapi.Password{Set: c.Verifier != nil, Wrong: guard.Wrong},
	}
	if c.UVKey != nil {
		out.UVKey = c.UVKey.String()
	}
	code, wait := guard.Locked(time.Now())
	if out.Password.Locked = code != 0; wait > 0 {
		out.Password.LockedUntil = &guard.Until
	}
	return out, nil
}

// giveBackClient asks for the change that draft returns, and answers with the client. If the client is neither
// suspended nor locked, it changes nothing.
func (s *Server) giveBackClient(
	draft func(context.Context, string) (change.Draft, bool, error),
) func(*http.Request, adminapi.Ask) (*adminapi.Change, adminapi.Client, error) {
	return func(r *http.Request, body adminapi.Ask) (preview *adminapi.Change, out adminapi.Client, err error) {
		d, needed, err := draft(r.Context(), r.PathValue("name"))
		if err == nil && (needed || body.DryRun) {
			preview, _, err = ask(s, r, d, body.DryRun, nothing)
		}
		if err != nil || preview != nil {
			return preview, out, s.notEnrolled(r, store.KindClient, err)
		}
		out, err = s.client(s.Appliance.Parties.ClientNamed)(r, adminapi.None{})
		return nil, out, err
	}
}

func nothing(any) adminapi.None { return adminapi.None{} }

func (s *Server) resumeDevice(r *http.Request, body adminapi.Ask) (*adminapi.Change, adminapi.Device, error) {
	d, needed, err := s.Appliance.Enrol.DraftResumeDevice(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, adminapi.Device{}, s.notEnrolled(r, store.KindDevice, err)
	}
	if needed || body.DryRun {
		return ask(s, r, d, body.DryRun, func(result any) adminapi.Device {
			device, _ := result.(store.Device)
			return deviceJSON(device)
		})
	}
	device, err := s.Appliance.Parties.DeviceNamed(r.Context(), r.PathValue("name"))
	return nil, deviceJSON(device), err
}

func deviceJSON(d store.Device) adminapi.Device {
	return adminapi.Device{
		Name: d.Name, ID: d.ID.String(), SPIFFEID: d.SPIFFEID, Display: d.Display, Floor: uint8(d.Floor),
		Status: d.Status.String(), Version: d.Version, CreatedAt: d.CreatedAt,
	}
}

// queryNumber returns the number of a query parameter, or absent if there is none.
func queryNumber(r *http.Request, name string, absent uint64) (uint64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return absent, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: %s=%q: want a number", parties.ErrInput, name, s)
	}
	return n, nil
}

// when returns nil for the zero time, so that its JSON is absent.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
