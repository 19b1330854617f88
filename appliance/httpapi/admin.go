package httpapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Admin serves administrators on the Unix socket. Whoever may connect to it is the
// one identity "local": the socket is 0600 and the peer is the daemon's own user
// or root.
type Admin struct {
	Appliance *appliance.Appliance
	Summary   func() admin.HSM
	HSM       HSM
	Logger    hclog.Logger
}

// adminProcess is the second half of a handler: a decoded request in, a value to
// encode out.
type adminProcess func(r *http.Request) (any, error)

// Handler of all routes. A verb is a POST.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	a.HSM.routes(mux)
	for route, p := range map[string]adminProcess{
		"GET status":                a.status,
		"GET doctor":                a.doctor,
		"GET key":                   a.keys,
		"GET key/plan":              a.keyPlan,
		"GET key/attest":            a.attestKeys,
		"GET key/{name}":            a.key,
		"POST key/backup":           a.backUpKeys,
		"GET audit":                 a.audit,
		"GET client":                a.clients,
		"GET client/{name}":         a.client,
		"POST client/{name}/invite": a.inviteClient,
		"POST client/{name}/unlock": a.unlock,
		"GET device":                a.devices,
		"GET device/{name}":         a.device,
		"POST device/{name}/invite": a.inviteDevice,
	} {
		a.handle(mux, route, p)
	}
	for verb, status := range map[string]store.Status{"suspend": store.Suspended, "resume": store.Active, "revoke": store.Revoked} {
		a.handle(mux, "POST client/{name}/"+verb, a.setClient(status))
		a.handle(mux, "POST device/{name}/"+verb, a.setDevice(status))
	}
	for _, verb := range []keyring.Verb{
		keyring.Create, keyring.Rotate, keyring.Activate, keyring.Retire, keyring.Suspend, keyring.Resume, keyring.Destroy,
	} {
		a.handle(mux, "POST key/{name}/"+string(verb), a.changeKey(verb))
	}
	for route, p := range a.quorumRoutes() {
		a.handle(mux, route, p)
	}
	mux.HandleFunc("POST "+admin.Prefix+"store/backup", func(w http.ResponseWriter, r *http.Request) {
		if err := a.copyStore(w, r); err != nil {
			failAdmin(w, r, a.Logger, err)
		}
	})
	return mux
}

// maxAdmin bounds a body, bytes: a policy of 64 KiB, escaped for JSON.
const maxAdmin = 256 << 10

func (a *Admin) handle(mux *http.ServeMux, route string, p adminProcess) {
	handleAdmin(mux, route, a.Logger, p)
}

func handleAdmin(mux *http.ServeMux, route string, log hclog.Logger, p adminProcess) {
	method, path, _ := strings.Cut(route, " ")
	mux.HandleFunc(method+" "+admin.Prefix+path, func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxAdmin)
		value, err := p(r)
		if err != nil {
			failAdmin(w, r, log, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(value) // the peer is gone: nothing to do
	})
}

func failAdmin(w http.ResponseWriter, r *http.Request, log hclog.Logger, err error) {
	problem := adminProblem(err)
	log.Info("admin request failed", "path", r.URL.Path, "status", problem.Status, "error", err)
	writeProblem(w, problem.Status, problem)
}

func (a *Admin) status(r *http.Request) (any, error) {
	o, err := a.Appliance.Overview(r.Context())
	return admin.Status{
		TrustDomain: o.Domain, RootKey: o.Root.String(), PolicyVersion: o.PolicyVersion, PolicyHash: o.PolicyHash.String(),
		HSM: a.Summary(), Counts: admin.Counts(o.Tally), Uptime: uptime(),
	}, err
}

func (a *Admin) inviteClient(r *http.Request) (any, error) { return a.invite(r, store.KindClient) }
func (a *Admin) inviteDevice(r *http.Request) (any, error) { return a.invite(r, store.KindDevice) }

func (a *Admin) invite(r *http.Request, kind store.Kind) (any, error) {
	var req admin.Invite
	if err := decodeBody(r, &req); err != nil {
		return nil, err
	}
	if req.TTLSeconds < 0 || req.TTLSeconds > int64(appliance.MaxInvitation/time.Second) {
		return nil, fmt.Errorf("%w: ttl_s %d: want at most %d", appliance.ErrInput, req.TTLSeconds, int64(appliance.MaxInvitation/time.Second))
	}
	name := r.PathValue("name")
	life, err := lifeOf(r)
	if err != nil {
		return nil, err
	}
	i := appliance.Invite{
		Kind: kind, Name: name, TTL: time.Duration(req.TTLSeconds) * time.Second, Display: req.Display, Floor: protocol.Level(req.Floor), Roles: req.Roles,
		Replace: req.Replace, Life: life,
	}
	if req.DryRun {
		return a.previewInvite(r.Context(), i)
	}
	code, expires, err := a.Appliance.Invite(r.Context(), i)
	invited := admin.Invited{Name: name, Kind: string(kind), ActivationCode: code.String(), ExpiresAt: expires}
	if errors.Is(err, appliance.ErrQuorum) {
		return nil, &invitedLater{error: err, Invited: invited}
	}
	return invited, err
}

// invitedLater is an invitation that waits for administrators, with its code.
type invitedLater struct {
	error
	admin.Invited
}

func (i *invitedLater) Unwrap() error { return i.error }

func (a *Admin) previewInvite(ctx context.Context, i appliance.Invite) (any, error) {
	if i.Kind != store.KindDevice {
		return nil, fmt.Errorf("%w: dry_run is of devices: inviting a client changes nothing else", appliance.ErrInput)
	}
	c, err := a.Appliance.PreviewInvite(ctx, i)
	return changeWords(c), err
}

// decodeBody reads the JSON of a verb; no body is one without members.
func decodeBody(r *http.Request, into any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %v", appliance.ErrInput, err)
	}
	return nil
}

func (a *Admin) clients(r *http.Request) (any, error) {
	all, err := a.Appliance.Clients(r.Context())
	if err != nil {
		return nil, err
	}
	out := make([]admin.Client, 0, len(all))
	for _, c := range all {
		words, err := a.clientWords(r.Context(), c)
		if err != nil {
			return nil, err
		}
		out = append(out, words)
	}
	return out, nil
}

func (a *Admin) devices(r *http.Request) (any, error) {
	all, err := a.Appliance.Devices(r.Context())
	if err != nil {
		return nil, err
	}
	out := make([]admin.Device, 0, len(all))
	for _, d := range all {
		out = append(out, deviceWords(d))
	}
	return out, nil
}

func (a *Admin) client(r *http.Request) (any, error) {
	c, err := a.Appliance.ClientNamed(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return a.clientWords(r.Context(), c)
}

func (a *Admin) unlock(r *http.Request) (any, error) {
	c, err := a.Appliance.Unlock(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return a.clientWords(r.Context(), c)
}

func (a *Admin) device(r *http.Request) (any, error) {
	d, err := a.Appliance.DeviceNamed(r.Context(), r.PathValue("name"))
	return deviceWords(d), err
}

func (a *Admin) setClient(to store.Status) adminProcess {
	return func(r *http.Request) (any, error) {
		c, err := a.Appliance.SetClientStatus(r.Context(), r.PathValue("name"), to)
		if err != nil {
			return nil, err
		}
		return a.clientWords(r.Context(), c)
	}
}

func (a *Admin) setDevice(to store.Status) adminProcess {
	return func(r *http.Request) (any, error) {
		d, err := a.Appliance.SetDeviceStatus(r.Context(), r.PathValue("name"), to)
		return deviceWords(d), err
	}
}

func (a *Admin) clientWords(ctx context.Context, c store.Client) (admin.Client, error) {
	guard, err := a.Appliance.Guard(ctx, c.ID)
	if err != nil {
		return admin.Client{}, err
	}
	words := admin.Client{
		Name: c.Name, ID: c.ID.String(), Status: c.Status.String(), SigningKey: c.SigningKey.String(),
		Roles: append([]string{}, c.Roles...), Version: c.Version, Highest: c.Highest, CreatedAt: c.CreatedAt,
		Password: admin.Password{Set: c.Verifier != nil, Wrong: guard.Wrong},
	}
	code, wait := guard.Locked(time.Now())
	if words.Password.Locked = code != 0; wait > 0 {
		words.Password.LockedUntil = &guard.Until
	}
	return words, nil
}

func deviceWords(d store.Device) admin.Device {
	return admin.Device{
		Name: d.Name, ID: d.ID.String(), SPIFFEID: d.SPIFFEID, Display: d.Display, Floor: uint8(d.Floor),
		Status: d.Status.String(), Version: d.Version, CreatedAt: d.CreatedAt,
	}
}

// Bounds of one page of audit records.
const (
	auditPage    = 100
	auditPageMax = 1000
)

func (a *Admin) audit(r *http.Request) (any, error) {
	after, err := queryNumber(r, "after", 0)
	if err != nil {
		return nil, err
	}
	limit, err := queryNumber(r, "limit", auditPage)
	if err != nil {
		return nil, err
	}
	records, err := a.Appliance.Records(r.Context(), after, int(min(limit, auditPageMax)))
	if err != nil {
		return nil, err
	}
	out := make([]admin.Record, 0, len(records))
	for _, rec := range records {
		out = append(out, recordWords(rec))
	}
	return out, nil
}

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

func recordWords(rec audit.Record) admin.Record {
	leaf := rec.Leaf()
	return admin.Record{
		Sequence: rec.Sequence, At: rec.At, Kind: rec.Kind, Subject: rec.Subject,
		Leaf: hex.EncodeToString(leaf[:]), Fields: rec.Words(),
	}
}
