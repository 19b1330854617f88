package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/keylife"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
)

// bench is an appliance with a real store and a token in memory, whose admin API is called over its socket.
type bench struct {
	*testing.T
	*adminapi.Caller
	appliance *appliance.Appliance
	server    *Server
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ctx, now := t.Context(), time.Now().Truncate(time.Second)
	s, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(t.TempDir(), "countersign.db"), Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	token := memory.New()
	trust, err := keylife.Ceremony(ctx, token, "test.example", now)
	if err != nil {
		t.Fatal(err)
	}
	trust.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: now}
	seals := store.NewSeals(nil)
	err = errors.Join(keyuse.SealKeys(ctx, token, trust.Keys, seals), s.Unseal(ctx, seals, nil))
	if err == nil {
		err = s.AddTrust(ctx, trust, audit.NewRecord(audit.KindCeremony, "trust", nil))
	}
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keyuse.Load(ctx, token, s, keyuse.Pins{Root: protocol.PublicKey(trust.Keys[0].Public)})
	if err == nil {
		err = keys.Keep(ctx, seals)
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := appliance.New(ctx, appliance.Config{Store: s, Keys: keys, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, appliance: a, server: &Server{
		Overview: a, Parties: a, Invites: a, Keys: a, Recovery: a, Requests: a, Administrators: a, Policies: a,
		HSM:    HSM{Summary: func() adminapi.HSM { return adminapi.HSM{Ready: true, Workers: 1, Wanted: 2} }},
		Logger: hclog.NewNullLogger(), StartedAt: now,
	}}
	b.Caller = serve(t, b.server.Handler())
	return b
}

// serve serves a handler on an admin socket and returns a caller of it.
func serve(t *testing.T, h http.Handler) *adminapi.Caller {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return adminapi.NewCaller("unix", path)
}

// must calls a route and fails the test if the answer is an error.
func must[Req, Res any](b *bench, r adminapi.Route[Req, Res], body Req, names ...string) Res {
	b.Helper()
	res, err := r.Call(b.Context(), b.Caller, body, names...)
	if err != nil {
		b.Fatalf("%s %v: %v", r.Pattern(), names, err)
	}
	return res
}

// refused calls a route and requires a problem of a type and status.
func refused[Req, Res any](b *bench, kind string, status int, r adminapi.Route[Req, Res], body Req, names ...string) *adminapi.Error {
	b.Helper()
	_, err := r.Call(b.Context(), b.Caller, body, names...)
	var e *adminapi.Error
	if !errors.As(err, &e) || e.Type != kind || e.Status != status {
		b.Fatalf("%s %v: %v (%+v), want %s with status %d", r.Pattern(), names, err, e, kind, status)
	}
	return e
}

// enrolDevice invites and enrols a device.
func (b *bench) enrolDevice(name string) {
	b.Helper()
	code := must(b, adminapi.Routes.DeviceInvite, adminapi.Invite{TTLSeconds: 60}, name)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		b.Fatal(err)
	}
	activation, err := enrol.ParseActivationCode(code.ActivationCode)
	if err != nil {
		b.Fatal(err)
	}
	body, err := json.Marshal(enrol.DeviceRequest{
		ActivationCode: activation, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := b.appliance.EnrolDevice(b.Context(), body); err != nil {
		b.Fatal(err)
	}
}

// TestEveryRouteIsServed: the handler has exactly the patterns of the table, and while it is locked only those of the HSM.
func TestEveryRouteIsServed(t *testing.T) {
	b := newBench(t)
	full, locked := b.server.Handler().(*mux), b.server.LockedHandler().(*mux)
	routes := reflect.ValueOf(adminapi.Routes)
	for i := range routes.NumField() {
		name := routes.Type().Field(i).Name
		pattern := routes.Field(i).Interface().(interface{ Pattern() string }).Pattern()
		method, path, _ := strings.Cut(pattern, " ")
		r := httptest.NewRequest(method, strings.NewReplacer("{", "", "}", "").Replace(path), nil)
		if _, got := full.Handler(r); got != pattern {
			t.Errorf("%s: %s is served by %q", name, pattern, got)
		}
		want := adminapi.Prefix
		if strings.HasPrefix(name, "HSM") {
			want = pattern
		}
		if _, got := locked.Handler(r); got != want {
			t.Errorf("%s: while locked, %s is served by %q", name, pattern, got)
		}
	}
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	s := must(b, adminapi.Routes.Status, adminapi.None{})
	if s.TrustDomain != "test.example" || s.PolicyVersion != 1 || s.HSM.Wanted != 2 || s.Counts.Keys == 0 || s.Uptime <= 0 {
		t.Errorf("%+v", s)
	}
	checks := map[string]string{}
	for _, e := range must(b, adminapi.Routes.Doctor, adminapi.None{}) {
		checks[e.Check] = e.Status
	}
	for _, check := range []string{"hsm", "keys", "store", "seals"} {
		if checks[check] != adminapi.CheckOK {
			t.Errorf("check %s is %q", check, checks[check])
		}
	}
	records := must(b, adminapi.Routes.Audit, adminapi.None{})
	page := must(b, adminapi.Routes.Audit.With("after", "1").With("limit", "1"), adminapi.None{})
	if len(records) < 2 || len(page) != 1 || page[0].Sequence != records[1].Sequence || page[0].Kind != audit.KindDoctor {
		t.Errorf("%+v, then %+v", records, page)
	}
	refused(b, adminapi.ProblemInput, 400, adminapi.Routes.Audit.With("after", "-1"), adminapi.None{})
}

func TestParties(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	invited := must(b, r.ClientInvite, adminapi.Invite{Roles: []string{"approver"}}, "alice")
	if left := time.Until(invited.ExpiresAt); invited.Name != "alice" || invited.Kind != "client" || left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("%+v", invited)
	}
	refused(b, adminapi.ProblemExists, 409, r.ClientInvite, adminapi.Invite{}, "alice")
	if again := must(b, r.ClientInvite, adminapi.Invite{Replace: true}, "alice"); again.ActivationCode == invited.ActivationCode {
		t.Error("the withdrawn code was given again")
	}
	refused(b, adminapi.ProblemInput, 400, r.ClientInvite, adminapi.Invite{TTLSeconds: 31 * 24 * 3600}, "bob")
	refused(b, adminapi.ProblemInput, 400, r.ClientInvite, adminapi.Invite{DryRun: true}, "bob")
	refused(b, adminapi.ProblemNotFound, 404, r.ClientShow, adminapi.None{}, "bob")
	refused(b, adminapi.ProblemNotFound, 404, r.ClientUnlock, adminapi.None{}, "bob")
	if clients := must(b, r.ClientList, adminapi.None{}); clients == nil || len(clients) != 0 {
		t.Errorf("%+v: want an empty list", clients)
	}

	if c := must(b, r.DeviceInvite.Preview(), adminapi.Invite{DryRun: true}, "gate"); c.State != "dry-run" || c.Kind != "device.invite" {
		t.Errorf("%+v", c)
	}
	b.enrolDevice("gate")
	if all := must(b, r.DeviceList, adminapi.None{}); len(all) != 1 || all[0].Name != "gate" || all[0].Status != "active" {
		t.Errorf("%+v", all)
	}
	for _, step := range []struct {
		route adminapi.Route[adminapi.None, adminapi.Device]
		want  string
	}{{r.DeviceSuspend, "suspended"}, {r.DeviceResume, "active"}, {r.DeviceRevoke, "revoked"}, {r.DeviceShow, "revoked"}} {
		if d := must(b, step.route, adminapi.None{}, "gate"); d.Status != step.want {
			t.Errorf("%s: status %s", step.route.Pattern(), d.Status)
		}
	}
	refused(b, adminapi.ProblemConflict, 409, r.DeviceResume, adminapi.None{}, "gate")
}

func TestKeys(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	all := must(b, r.KeyList, adminapi.None{})
	one := must(b, r.KeyShow, adminapi.None{}, "decision@1")
	if len(one) != 1 || one[0].State != "active" || !strings.HasPrefix(one[0].SPKI, one[0].ID) || len(one[0].PublicKey) != 66 {
		t.Errorf("%+v", one)
	}
	versions := must(b, r.KeyShow, adminapi.None{}, "decision")
	refused(b, adminapi.ProblemNotFound, 404, r.KeyShow, adminapi.None{}, "decision@99")
	refused(b, adminapi.ProblemNotFound, 404, r.KeyRotate, adminapi.KeyStep{}, "nothing")

	planned := must(b, r.KeyRotate, adminapi.KeyStep{DryRun: true}, "decision")
	if now := must(b, r.KeyList, adminapi.None{}); len(now) != len(all) {
		t.Error("a dry run made a key")
	}
	rotated := must(b, r.KeyRotate, adminapi.KeyStep{}, "decision")
	if len(planned) != len(rotated) || len(must(b, r.KeyShow, adminapi.None{}, "decision")) != len(versions)+1 {
		t.Errorf("planned %+v, got %+v", planned, rotated)
	}
	must(b, r.KeyActivate, adminapi.KeyStep{}, "decision")
	must(b, r.KeySuspend, adminapi.KeyStep{}, "decision@1")
	must(b, r.KeyResume, adminapi.KeyStep{}, "decision@1")
	refused(b, adminapi.ProblemKeyStep, 409, r.KeyRetire, adminapi.KeyStep{}, "decision@1") // its overlap is not over
	must(b, r.KeyRetire, adminapi.KeyStep{Early: true}, "decision@1")
	if gone := must(b, r.KeyDestroy, adminapi.KeyStep{}, "decision@1"); len(gone) != 1 || gone[0].State != "destroyed" || gone[0].OnToken {
		t.Errorf("%+v", gone)
	}
	refused(b, adminapi.ProblemKeyStep, 409, r.KeyCreate, adminapi.KeyStep{}, "decision")
	refused(b, adminapi.ProblemInput, 400, r.KeyRotate.With("life_s", "0"), adminapi.KeyStep{}, "decision")

	plan := must(b, r.KeyPlan, adminapi.None{})
	if len(plan.Keys) == 0 || plan.Records.Total < plan.Records.Left {
		t.Errorf("%+v", plan)
	}
	for _, f := range must(b, r.KeyAttest, adminapi.None{}) {
		if !f.Good || f.Unknown || f.Drift == nil {
			t.Errorf("%+v", f)
		}
	}
}

func TestBackups(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	refused(b, adminapi.ProblemUncovered, 409, r.KeyBackup, adminapi.KeyBackupAsk{})
	dry := must(b, r.KeyBackup, adminapi.KeyBackupAsk{Partial: true, DryRun: true})
	if dry.File != nil || len(dry.Missing) == 0 || dry.Keys == nil {
		t.Errorf("%+v", dry)
	}
	about, database, err := b.CopyStore(b.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, database)
	if err := errors.Join(err, database.Close()); err != nil {
		t.Fatal(err)
	}
	if n != about.Size || hex.EncodeToString(sum.Sum(nil)) != about.SHA256 || len(about.Statement) == 0 {
		t.Errorf("%d bytes, %+v", n, about)
	}
}

// TestQuorum: a change that needs more administrators is answered with the request, and an invitation with its code.
func TestQuorum(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := protocol.CompressKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	refused(b, adminapi.ProblemInput, 400, r.AdminAdd, adminapi.Administer{PublicKey: "00"}, "ann")
	if c := must(b, r.AdminAdd.Preview(), adminapi.Administer{PublicKey: point.String(), DryRun: true}, "ann"); c.State != "dry-run" {
		t.Errorf("%+v", c)
	}
	refused(b, adminapi.ProblemNotFound, 404, r.AdminShow, adminapi.None{}, "ann")
	ann := must(b, r.AdminAdd, adminapi.Administer{PublicKey: point.String()}, "ann")
	if ann.PublicKey != point.String() || ann.Status != "active" || len(must(b, r.AdminList, adminapi.None{})) != 1 {
		t.Errorf("%+v", ann)
	}
	if a := must(b, r.AdminSuspend, adminapi.None{}, "ann"); a.Status != "suspended" {
		t.Errorf("%+v", a)
	}
	if a := must(b, r.AdminResume, adminapi.Administer{}, "ann"); a.Status != "active" {
		t.Errorf("%+v", a)
	}

	two := strings.Replace(string(policy.Default()), "[quorum]\n", "[quorum]\n\"device.invite\" = 2\n", 1)
	if c := must(b, r.PolicyApply.Preview(), adminapi.Apply{Document: two, DryRun: true}); c.Kind != "policy.apply" {
		t.Errorf("%+v", c)
	}
	p := must(b, r.PolicyApply, adminapi.Apply{Document: two})
	if p.Version != 2 || p.Document != two || must(b, r.PolicyShow, adminapi.None{}).Hash != p.Hash {
		t.Errorf("version %d, hash %s", p.Version, p.Hash)
	}

	e := refused(b, adminapi.ProblemQuorum, 403, r.DeviceInvite.With("life_s", "60"), adminapi.Invite{}, "gate")
	if e.Change == nil || e.Change.More != 1 || e.Invited == nil || e.Invited.ActivationCode == "" || e.Change.State != "open" {
		t.Fatalf("%+v, %+v", e.Change, e.Invited)
	}
	if life := e.Change.ExpiresAt.Sub(e.Change.CreatedAt); life != time.Minute {
		t.Errorf("the request is open for %v", life)
	}
	id := e.Change.ID
	if c := must(b, r.ChangeShow, adminapi.None{}, id); c.Hash != e.Change.Hash || len(c.Missing) != 1 || c.Missing[0] != "ann" {
		t.Errorf("%+v", c)
	}
	refused(b, adminapi.ProblemQuorum, 403, r.ChangeSign, adminapi.Sign{}, id) // the socket has signed already
	refused(b, adminapi.ProblemSignature, 403, r.ChangeSign, adminapi.Sign{Signature: []byte("x")}, id)
	if c := must(b, r.ChangeWithdraw, adminapi.None{}, id); c.State != "withdrawn" {
		t.Errorf("%+v", c)
	}
	refused(b, adminapi.ProblemOver, 409, r.ChangeSign, adminapi.Sign{}, id)
	refused(b, adminapi.ProblemInput, 400, r.ChangeShow, adminapi.None{}, "xyz")
	refused(b, adminapi.ProblemNotFound, 404, r.ChangeShow, adminapi.None{}, "0011223344556677")
}

// TestBodies: unknown members, too many bytes, and an empty body.
func TestBodies(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name, body string
		want       int
	}{
		{"empty", "", 200},
		{"no-members", "{}", 200},
		{"one-member", `{"ttl_s":1}`, 200},
		{"unknown-member", `{"tl_s":1}`, 400},
		{"cut-off", "[", 400},
		{"too-long", `{"display":"` + strings.Repeat("x", maxBody) + `"}`, 400},
	} {
		w := httptest.NewRecorder()
		path := adminapi.Prefix + "client/" + c.name + "/invite"
		b.server.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(c.body)))
		if w.Code != c.want {
			t.Errorf("%s: status %d: %s", c.name, w.Code, w.Body)
		}
		if media := w.Header().Get("Content-Type"); c.want != 200 && media != deviceapi.ProblemType {
			t.Errorf("%s: content type %q", c.name, media)
		}
	}
}

// TestUnlock: the PIN arrives byte for byte and is erased afterwards.
func TestUnlock(t *testing.T) {
	var got string
	var buffer []byte
	s := &Server{Logger: hclog.NewNullLogger(), HSM: HSM{
		Status: func() []adminapi.Token { return []adminapi.Token{{Name: "first"}} },
		Unlock: func(_ context.Context, token string, pin []byte) error {
			got, buffer = token+":"+string(pin), pin
			if string(pin) == "wrong" {
				return hsm.ErrPIN
			}
			return nil
		},
		Drain: func(context.Context, string, bool) error { return store.ErrNotFound },
	}}
	b := &bench{T: t, server: s, Caller: serve(t, s.LockedHandler())}
	r := adminapi.Routes
	long := strings.Repeat("9", maxPIN)
	for _, pin := range []string{"1234-\x00\xff", long} {
		if tokens := must(b, r.HSMUnlock.With("token", "second"), []byte(pin)); len(tokens) != 1 || got != "second:"+pin {
			t.Errorf("%q arrived as %q", pin, got)
		}
		if strings.Trim(string(buffer), "\x00") != "" {
			t.Error("the PIN was not erased")
		}
	}
	refused(b, adminapi.ProblemPIN, 403, r.HSMUnlock, []byte("wrong"))
	got = ""
	refused(b, adminapi.ProblemInput, 400, r.HSMUnlock, nil)
	refused(b, adminapi.ProblemInput, 400, r.HSMUnlock, []byte(long+"9"))
	if got != "" {
		t.Error("a PIN of a wrong length was tried")
	}
	refused(b, adminapi.ProblemNotFound, 404, r.HSMDrain, adminapi.None{}, "third")
	refused(b, adminapi.ProblemLocked, 503, r.Status, adminapi.None{})
	if tokens := must(b, r.HSMStatus, adminapi.None{}); len(tokens) != 1 {
		t.Errorf("%+v", tokens)
	}
}

// TestInternal: an error that is not in the table is a problem too, with its text.
func TestInternal(t *testing.T) {
	s := &Server{Logger: hclog.NewNullLogger(), HSM: HSM{Drain: func(context.Context, string, bool) error { return errors.New("odd") }}}
	b := &bench{T: t, Caller: serve(t, s.LockedHandler())}
	if e := refused(b, adminapi.ProblemInternal, 500, adminapi.Routes.HSMDrain, adminapi.None{}, "first"); e.Detail != "odd" {
		t.Errorf("%+v", e)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(path); err == nil {
		_ = l.Close()
		t.Error("a file was replaced by a socket")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if l, err := Listen(path); err == nil {
		_ = l.Close()
		t.Error("the socket of a live daemon was replaced")
	}
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	go func() { _, _ = net.Dial("unix", path) }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if peer, err := Peer(conn); err != nil || int(peer.Pid) != os.Getpid() || int(peer.Uid) != os.Getuid() {
		t.Errorf("peer %+v, %v", peer, err)
	}
}
