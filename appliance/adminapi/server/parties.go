package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/enrol"
)

// Overview summarizes and examines the appliance, and reads its audit records.
type Overview interface {
	Overview(ctx context.Context) (appliance.Overview, error)
	Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error)
	Examiner
}

// Examiner examines token and store.
type Examiner interface {
	Examine(ctx context.Context) []appliance.Finding
}

// Parties reads and changes the enrolled clients and devices.
type Parties interface {
	Clients(ctx context.Context) ([]store.Client, error)
	ClientNamed(ctx context.Context, name string) (store.Client, error)
	SetClientStatus(ctx context.Context, name string, to store.Status) (store.Client, error)
	Guard(ctx context.Context, id protocol.ClientID) (store.Guard, error)
	Unlock(ctx context.Context, name string) (store.Client, error)
	Devices(ctx context.Context) ([]store.Device, error)
	DeviceNamed(ctx context.Context, name string) (store.Device, error)
	SetDeviceStatus(ctx context.Context, name string, to store.Status) (store.Device, error)
}

// Invites makes activation codes.
type Invites interface {
	Invite(ctx context.Context, i appliance.Invite) (enrol.ActivationCode, time.Time, error)
	PreviewInvite(ctx context.Context, i appliance.Invite) (appliance.Change, error)
}

func (s *Server) bindParties(m *mux) {
	r := adminapi.Routes
	bind(m, r.ClientList, s.clients)
	bind(m, r.ClientShow, s.oneClient(s.Parties.ClientNamed))
	bind(m, r.ClientUnlock, s.oneClient(s.Parties.Unlock))
	bind(m, r.ClientSuspend, s.setClient(store.Suspended))
	bind(m, r.ClientResume, s.setClient(store.Active))
	bind(m, r.ClientRevoke, s.setClient(store.Revoked))
	bindPreviewed(m, r.ClientInvite, s.invite(store.KindClient))
	bind(m, r.DeviceList, s.devices)
	bind(m, r.DeviceShow, oneDevice(s.Parties.DeviceNamed))
	bind(m, r.DeviceSuspend, s.setDevice(store.Suspended))
	bind(m, r.DeviceResume, s.setDevice(store.Active))
	bind(m, r.DeviceRevoke, s.setDevice(store.Revoked))
	bindPreviewed(m, r.DeviceInvite, s.invite(store.KindDevice))
}

func (s *Server) status(r *http.Request, _ adminapi.None) (adminapi.Status, error) {
	o, err := s.Overview.Overview(r.Context())
	return adminapi.Status{
		TrustDomain: o.Domain, RootKey: o.Root.String(), PolicyVersion: o.PolicyVersion, PolicyHash: o.PolicyHash.String(),
		HSM: s.HSM.Summary(), Counts: adminapi.Counts(o.Tally), Uptime: time.Since(s.StartedAt).Seconds(),
	}, err
}

// invited is the handler of an invitation.
type invited = func(r *http.Request, body adminapi.Invite) (*adminapi.Change, adminapi.Invited, error)

func (s *Server) invite(kind store.Kind) invited {
	return func(r *http.Request, body adminapi.Invite) (*adminapi.Change, adminapi.Invited, error) {
		i, err := invitation(r, kind, body)
		switch {
		case err != nil:
			return nil, adminapi.Invited{}, err
		case body.DryRun && kind != store.KindDevice:
			err = fmt.Errorf("%w: dry_run applies to devices only: inviting a client has no other effect", appliance.ErrInput)
			return nil, adminapi.Invited{}, err
		case body.DryRun:
			c, err := s.Invites.PreviewInvite(r.Context(), i)
			preview := changeJSON(c)
			return &preview, adminapi.Invited{}, err
		}
		code, expires, err := s.Invites.Invite(r.Context(), i)
		made := adminapi.Invited{Name: i.Name, Kind: string(kind), ActivationCode: code.String(), ExpiresAt: expires}
		if errors.Is(err, appliance.ErrQuorum) {
			err = &invitedLater{error: err, Invited: made}
		}
		return nil, made, err
	}
}

func invitation(r *http.Request, kind store.Kind, body adminapi.Invite) (i appliance.Invite, err error) {
	const most = int64(appliance.MaxInvitation / time.Second)
	if body.TTLSeconds < 0 || body.TTLSeconds > most {
		return i, fmt.Errorf("%w: ttl_s %d: want at most %d", appliance.ErrInput, body.TTLSeconds, most)
	}
	life, err := lifeOf(r)
	return appliance.Invite{
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
	all, err := s.Parties.Clients(r.Context())
	out := make([]adminapi.Client, len(all))
	for i := range all {
		if err == nil {
			out[i], err = s.clientJSON(r.Context(), all[i])
		}
	}
	return out, err
}

// oneClient answers with the client that get returns.
func (s *Server) oneClient(get func(context.Context, string) (store.Client, error)) handler[adminapi.None, adminapi.Client] {
	return func(r *http.Request, _ adminapi.None) (adminapi.Client, error) {
		c, err := get(r.Context(), r.PathValue("name"))
		if err != nil {
			return adminapi.Client{}, err
		}
		return s.clientJSON(r.Context(), c)
	}
}

func (s *Server) setClient(to store.Status) handler[adminapi.None, adminapi.Client] {
	return s.oneClient(func(ctx context.Context, name string) (store.Client, error) {
		return s.Parties.SetClientStatus(ctx, name, to)
	})
}

func (s *Server) devices(r *http.Request, _ adminapi.None) ([]adminapi.Device, error) {
	all, err := s.Parties.Devices(r.Context())
	return each(all, deviceJSON), err
}

// oneDevice answers with the device that get returns.
func oneDevice(get func(context.Context, string) (store.Device, error)) handler[adminapi.None, adminapi.Device] {
	return func(r *http.Request, _ adminapi.None) (adminapi.Device, error) {
		d, err := get(r.Context(), r.PathValue("name"))
		return deviceJSON(d), err
	}
}

func (s *Server) setDevice(to store.Status) handler[adminapi.None, adminapi.Device] {
	return oneDevice(func(ctx context.Context, name string) (store.Device, error) {
		return s.Parties.SetDeviceStatus(ctx, name, to)
	})
}

func (s *Server) clientJSON(ctx context.Context, c store.Client) (adminapi.Client, error) {
	guard, err := s.Parties.Guard(ctx, c.ID)
	if err != nil {
		return adminapi.Client{}, err
	}
	out := adminapi.Client{
		Name: c.Name, ID: c.ID.String(), Status: c.Status.String(), SigningKey: c.SigningKey.String(),
		Roles: append([]string{}, c.Roles...), Version: c.Version, Highest: c.Highest, CreatedAt: c.CreatedAt,
		Password: adminapi.Password{Set: c.Verifier != nil, Wrong: guard.Wrong},
	}
	code, wait := guard.Locked(time.Now())
	if out.Password.Locked = code != 0; wait > 0 {
		out.Password.LockedUntil = &guard.Until
	}
	return out, nil
}

func deviceJSON(d store.Device) adminapi.Device {
	return adminapi.Device{
		Name: d.Name, ID: d.ID.String(), SPIFFEID: d.SPIFFEID, Display: d.Display, Floor: uint8(d.Floor),
		Status: d.Status.String(), Version: d.Version, CreatedAt: d.CreatedAt,
	}
}

// Bounds of one page of audit records.
const (
	auditPage    = 100
	auditPageMax = 1000
)

func (s *Server) audit(r *http.Request, _ adminapi.None) ([]adminapi.Record, error) {
	after, err := queryNumber(r, "after", 0)
	if err != nil {
		return nil, err
	}
	limit, err := queryNumber(r, "limit", auditPage)
	if err != nil {
		return nil, err
	}
	records, err := s.Overview.Records(r.Context(), after, int(min(limit, auditPageMax)))
	return each(records, recordJSON), err
}

func recordJSON(rec audit.Record) adminapi.Record {
	leaf := rec.Leaf()
	return adminapi.Record{
		Sequence: rec.Sequence, At: rec.At, Kind: rec.Kind, Subject: rec.Subject,
		Leaf: hex.EncodeToString(leaf[:]), Fields: rec.Words(),
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
		return 0, fmt.Errorf("%w: %s=%q: want a number", appliance.ErrInput, name, s)
	}
	return n, nil
}

// each applies f to every element. The result is never nil, so that its JSON is an array.
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

// when returns nil for the zero time, so that its JSON is absent.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
