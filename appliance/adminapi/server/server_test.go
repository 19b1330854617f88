package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/appliance/appliancetest"
	"countersign/appliance/change/requests"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// bench is an appliance with one device, "gate", whose admin API is called over its socket.
type bench struct {
	*testing.T
	*adminapi.Caller
	appliance *appliancetest.Bench
	server    *Server
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, appliance: appliancetest.New(t)}
	b.server = &Server{
		Appliance: b.appliance.Appliance, Logger: hclog.NewNullLogger(), StartedAt: time.Now(),
		HSM: HSM{
			Summary: func() adminapi.HSM { return adminapi.HSM{Ready: true, Workers: 1, Wanted: 2} },
			Status:  func(context.Context) []adminapi.Token { return nil },
		},
	}
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
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Second, ConnContext: PeerContext}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return adminapi.NewCaller(path)
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

// TestEveryRouteIsServed: the handler serves every route of the table, and while it is locked only the HSM routes.
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
	all := adminapi.Routes.Audit.With("after", "0")
	records := must(b, all, adminapi.None{})
	checks := map[string]string{}
	for _, e := range must(b, adminapi.Routes.Doctor, adminapi.None{}) {
		checks[e.Check] = e.Status
	}
	for _, check := range []string{"hsm", "keys", "store", "seals"} {
		if checks[check] != adminapi.CheckOK {
			t.Errorf("check %s is %q", check, checks[check])
		}
	}
	if after := must(b, all, adminapi.None{}); len(after) != len(records) {
		t.Errorf("the examination has added %d records", len(after)-len(records))
	}
	page := must(b, adminapi.Routes.Audit.With("after", "1").With("limit", "1"), adminapi.None{})
	if last := records[len(records)-1]; last.Sequence != uint64(len(records)) {
		t.Errorf("last record %+v of %d", last, len(records))
	}
	if len(page) != 1 || page[0].Sequence != 2 || page[0].Leaf != records[1].Leaf {
		t.Errorf("%+v", page)
	}
	slices.Reverse(records)
	for limit, want := range map[string][]adminapi.Record{"1": records[:1], "2": records[:2], "1000": records} {
		if got := must(b, adminapi.Routes.Audit.With("limit", limit), adminapi.None{}); !reflect.DeepEqual(got, want) {
			t.Errorf("the newest %s: %+v", limit, got)
		}
	}
	refused(b, problem.Input, 400, adminapi.Routes.Audit.With("after", "-1"), adminapi.None{})
	for _, limit := range []string{"0", "1001", "-1"} {
		refused(b, problem.Input, 400, adminapi.Routes.Audit.With("limit", limit), adminapi.None{})
	}
}

func TestParties(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	invited := must(b, r.ClientInvite, adminapi.Invite{Roles: []string{"approver"}}, "alice")
	if left := time.Until(invited.ExpiresAt); invited.Name != "alice" || invited.Kind != "client" || left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("%+v", invited)
	}
	refused(b, problem.Exists, 409, r.ClientInvite, adminapi.Invite{}, "alice")
	if again := must(b, r.ClientInvite, adminapi.Invite{Replace: true}, "alice"); again.ActivationCode == invited.ActivationCode {
		t.Error("the withdrawn code was given again")
	}
	refused(b, problem.Input, 400, r.ClientInvite, adminapi.Invite{TTLSeconds: 31 * 24 * 3600}, "bob")
	if c := must(b, r.ClientInvite.Preview(), adminapi.Invite{DryRun: true}, "bob"); c.State != "dry-run" || c.Kind != "client.invite" {
		t.Errorf("%+v", c)
	}
	refused(b, problem.NotFound, 404, r.ClientShow, adminapi.None{}, "bob")
	refused(b, problem.NotFound, 404, r.ClientUnlock, adminapi.Ask{}, "bob")
	if s := must(b, r.Status, adminapi.None{}); s.OpenCodes != 1 {
		t.Errorf("%d open codes", s.OpenCodes)
	}
	if all := must(b, r.ClientList, adminapi.None{}); len(all) != 1 || all[0].Status != adminapi.StatusInvited || all[0].ExpiresAt == nil {
		t.Errorf("%+v: want alice's open code", all)
	}
	if c := must(b, r.ClientShow, adminapi.None{}, "alice"); c.Status != adminapi.StatusInvited || c.ID != "" {
		t.Errorf("%+v", c)
	}
	if c := must(b, r.ClientRevoke, adminapi.None{}, "alice"); c.Status != adminapi.StatusWithdrawn || c.Name != "alice" {
		t.Errorf("%+v", c)
	}
	refused(b, problem.NotFound, 404, r.ClientRevoke, adminapi.None{}, "alice")
	if clients := must(b, r.ClientList, adminapi.None{}); clients == nil || len(clients) != 0 {
		t.Errorf("%+v: want an empty list", clients)
	}
	phone := b.appliance.EnrolFull("carol", "approver")
	c := must(b, r.ClientShow, adminapi.None{}, "carol")
	if c.SigningKey != phone.Key.Point().String() || !c.Password.Set || c.Password.Locked || c.Highest != -1 || c.Roles[0] != "approver" {
		t.Errorf("%+v", c)
	}
	for _, step := range []struct {
		do   func() adminapi.Client
		want string
	}{
		{func() adminapi.Client { return must(b, r.ClientSuspend, adminapi.None{}, "carol") }, "suspended"},
		{func() adminapi.Client { return must(b, r.ClientResume, adminapi.Ask{}, "carol") }, "active"},
		{func() adminapi.Client { return must(b, r.ClientResume, adminapi.Ask{}, "carol") }, "active"},
		{func() adminapi.Client { return must(b, r.ClientUnlock, adminapi.Ask{}, "carol") }, "active"},
		{func() adminapi.Client { return must(b, r.ClientRevoke, adminapi.None{}, "carol") }, "revoked"},
	} {
		if c := step.do(); c.Status != step.want {
			t.Errorf("%s, want %s", c.Status, step.want)
		}
	}
	refused(b, problem.Conflict, 409, r.ClientResume, adminapi.Ask{}, "carol")
	if all := must(b, r.ClientList, adminapi.None{}); len(all) != 1 || all[0].Status != "revoked" {
		t.Errorf("%+v", all)
	}

	if c := must(b, r.DeviceInvite.Preview(), adminapi.Invite{DryRun: true}, "door"); c.State != "dry-run" || c.Kind != "device.invite" {
		t.Errorf("%+v", c)
	}
	if i := must(b, r.DeviceInvite, adminapi.Invite{TTLSeconds: 60}, "door"); i.Kind != "device" || time.Until(i.ExpiresAt) > time.Minute {
		t.Errorf("%+v", i)
	}
	if all := must(b, r.DeviceList, adminapi.None{}); len(all) != 2 || all[0].Name != "gate" || all[0].Status != "active" || all[1].Status != adminapi.StatusInvited {
		t.Errorf("%+v", all)
	}
	if d := must(b, r.DeviceRevoke, adminapi.None{}, "door"); d.Status != adminapi.StatusWithdrawn {
		t.Errorf("%+v", d)
	}
	must(b, r.DeviceSuspend, adminapi.None{}, "gate")
	if d := must(b, r.DeviceShow, adminapi.None{}, "gate"); d.Status != "suspended" {
		t.Errorf("status %s", d.Status)
	}
	if d := must(b, r.DeviceResume, adminapi.Ask{}, "gate"); d.Status != "active" {
		t.Errorf("status %s", d.Status)
	}
	if d := must(b, r.DeviceRevoke, adminapi.None{}, "gate"); d.Status != "revoked" {
		t.Errorf("status %s", d.Status)
	}
	refused(b, problem.Conflict, 409, r.DeviceResume, adminapi.Ask{}, "gate")
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
	refused(b, problem.NotFound, 404, r.KeyShow, adminapi.None{}, "decision@99")
	refused(b, problem.NotFound, 404, r.KeyRotate, adminapi.KeyStep{}, "nothing")

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
	refused(b, problem.KeyStep, 409, r.KeyRetire, adminapi.KeyStep{}, "decision@1") // its overlap is not over
	must(b, r.KeyRetire, adminapi.KeyStep{Early: true}, "decision@1")
	if gone := must(b, r.KeyDestroy, adminapi.KeyStep{}, "decision@1"); len(gone) != 1 || gone[0].State != "destroyed" || gone[0].OnToken {
		t.Errorf("%+v", gone)
	}
	refused(b, problem.KeyStep, 409, r.KeyCreate, adminapi.KeyStep{}, "decision")
	refused(b, problem.Input, 400, r.KeyRotate.With("life_s", "0"), adminapi.KeyStep{}, "decision")

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
	refused(b, problem.Uncovered, 409, r.KeyBackup, adminapi.KeyBackupAsk{})
	dry := must(b, r.KeyBackup, adminapi.KeyBackupAsk{Partial: true, DryRun: true})
	if dry.File != nil || len(dry.Missing) == 0 || dry.Keys == nil || dry.SHA256 != "" {
		t.Errorf("%+v", dry)
	}
	made := must(b, r.KeyBackup, adminapi.KeyBackupAsk{Partial: true})
	must(b, r.KeyKept, adminapi.Kept{SHA256: made.SHA256})
	refused(b, problem.NotFound, 404, r.KeyKept, adminapi.Kept{SHA256: made.SHA256})
	refused(b, problem.Input, 400, r.StoreKept, adminapi.Kept{SHA256: made.SHA256[2:]})
	refused(b, problem.Input, 400, r.StoreKept, adminapi.Kept{SHA256: made.SHA256, Problem: strings.Repeat("x", 501)})
	about, database, err := b.CopyStore(b.Context(), r.StoreBackup)
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

// deviceByTwo is the default policy with two administrators for an invitation of a device.
func deviceByTwo() string {
	return strings.Replace(string(policy.Default()), "[quorum]\n", "[quorum]\n\"device.invite\" = 2\n", 1)
}

// TestPolicyVersions: each version of the policy is listed and shown, with the change request that put it into force.
func TestPolicyVersions(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	two := deviceByTwo()
	if c := must(b, r.PolicyApply.Preview(), adminapi.Apply{Document: two, DryRun: true}); c.Kind != "policy.apply" {
		t.Errorf("%+v", c)
	}
	p := must(b, r.PolicyApply, adminapi.Apply{Document: two})
	if p.Version != 2 || p.Document != two || must(b, r.PolicyShow, adminapi.None{}).Hash != p.Hash {
		t.Errorf("version %d, hash %s", p.Version, p.Hash)
	}
	h := must(b, r.PolicyHistory, adminapi.None{})
	if len(h) != 2 || h[0].Hash != p.Hash || h[0].Change == "" || h[1].Version != 1 || h[1].Change != "" {
		t.Errorf("history: %+v", h)
	}
	if first := must(b, r.PolicyAt, adminapi.None{}, "1"); first.Document != string(policy.Default()) {
		t.Errorf("version 1 is %d bytes", len(first.Document))
	}
	refused(b, problem.NotFound, 404, r.PolicyAt, adminapi.None{}, "3")
	refused(b, problem.Input, 400, r.PolicyAt, adminapi.None{}, "x")
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
	refused(b, problem.Input, 400, r.AdminAdd, adminapi.Administer{PublicKey: "00"}, "ann")
	if c := must(b, r.AdminAdd.Preview(), adminapi.Administer{PublicKey: point.String(), DryRun: true}, "ann"); c.State != "dry-run" {
		t.Errorf("%+v", c)
	}
	refused(b, problem.NotFound, 404, r.AdminShow, adminapi.None{}, "ann")
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

	must(b, r.PolicyApply, adminapi.Apply{Document: deviceByTwo()})
	e := refused(b, problem.Quorum, 403, r.DeviceInvite.With("life_s", "60"), adminapi.Invite{}, "door")
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
	if c := must(b, r.ChangeSign, adminapi.Sign{}, id); c.State != "open" || c.More != 1 || c.CountersignedAs != "local" { // again
		t.Errorf("%+v", c)
	}
	if e.Change.CountersignedAs != "local" || len(e.Change.Effect) == 0 || !strings.Contains(e.Change.Effect[0], "door") {
		t.Errorf("countersigned as %q, effect %q", e.Change.CountersignedAs, e.Change.Effect)
	}
	refused(b, problem.Signature, 403, r.ChangeSign, adminapi.Sign{Signature: []byte("x")}, id)
	if c := must(b, r.ChangeWithdraw, adminapi.None{}, id); c.State != "withdrawn" {
		t.Errorf("%+v", c)
	}
	refused(b, problem.Over, 409, r.ChangeSign, adminapi.Sign{}, id)
	refused(b, problem.Input, 400, r.ChangeShow, adminapi.None{}, "xyz")
	refused(b, problem.NotFound, 404, r.ChangeShow, adminapi.None{}, "0011223344556677")
}

// TestStepRequest: a dry run answers with the request that a step would make and with what it takes: a rotation that
// rules versions out takes what key.retire takes. A step without a vote takes nothing.
func TestStepRequest(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	two := strings.Replace(string(policy.Default()), "[quorum]\n", "[quorum]\n\"key.retire\" = 2\n", 1)
	must(b, r.PolicyApply, adminapi.Apply{Document: two})
	before := len(must(b, r.ChangeList, adminapi.None{}))
	for _, one := range []struct {
		route    adminapi.Route[adminapi.KeyStep, []adminapi.Key]
		key      string
		step     adminapi.KeyStep
		kind     string
		required int
	}{
		{r.KeyRotate, "decision", adminapi.KeyStep{}, "key.rotate", 1},
		{r.KeyRotate, "decision", adminapi.KeyStep{Compromised: true}, "key.rotate", 2},
		{r.KeySuspend, "decision@1", adminapi.KeyStep{}, "", 0},
	} {
		one.step.DryRun, one.step.Request = true, true
		c := must(b, one.route.Preview(), one.step, one.key)
		if c.Kind != one.kind || c.Required != one.required {
			t.Errorf("%+v: %s takes %d, want %s %d", one.step, c.Kind, c.Required, one.kind, one.required)
		}
	}
	if c := must(b, r.ChangeList, adminapi.None{}); len(c) != before {
		t.Errorf("%d requests were stored", len(c)-before)
	}
}

// TestChangesShown: the admin API says rightly how many requests the list has at most.
func TestChangesShown(t *testing.T) {
	if adminapi.ChangesShown != requests.Shown {
		t.Errorf("%d, and %d are shown", adminapi.ChangesShown, requests.Shown)
	}
}

// TestInvitedGives: the answer to an invitation says what its code gives, also what a replacement kept.
func TestInvitedGives(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	must(b, r.DeviceInvite, adminapi.Invite{Display: "Blue", Floor: 2}, "gate-9")
	if i := must(b, r.DeviceInvite, adminapi.Invite{Replace: true, Floor: 3}, "gate-9"); i.Display != "Blue" || i.Floor != 3 {
		t.Errorf("%+v", i)
	}
	must(b, r.ClientInvite, adminapi.Invite{Roles: []string{"approver"}}, "vera")
	if i := must(b, r.ClientInvite, adminapi.Invite{Replace: true}, "vera"); !slices.Equal(i.Roles, []string{"approver"}) {
		t.Errorf("%+v", i)
	}
	if i := must(b, r.ClientInvite, adminapi.Invite{Replace: true, Roles: []string{}}, "vera"); len(i.Roles) != 0 {
		t.Errorf("%+v", i)
	}
}

// TestNotEnrolledYet: a name that only an activation code has is not just unknown.
func TestNotEnrolledYet(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	must(b, r.ClientInvite, adminapi.Invite{}, "vera")
	must(b, r.DeviceInvite, adminapi.Invite{}, "gate-9")
	for _, e := range []*adminapi.Error{
		refused(b, problem.NotFound, 404, r.ClientSuspend, adminapi.None{}, "vera"),
		refused(b, problem.NotFound, 404, r.ClientUnlock, adminapi.Ask{}, "vera"),
		refused(b, problem.NotFound, 404, r.ClientResume, adminapi.Ask{}, "vera"),
		refused(b, problem.NotFound, 404, r.DeviceSuspend, adminapi.None{}, "gate-9"),
		refused(b, problem.NotFound, 404, r.DeviceResume, adminapi.Ask{}, "gate-9"),
	} {
		want := fmt.Sprintf("%s %q is not enrolled yet; %s revoke withdraws its activation code", e.Noun, e.Names[0], e.Noun)
		if e.Detail != want {
			t.Errorf("%q, want %q", e.Detail, want)
		}
	}
	if e := refused(b, problem.NotFound, 404, r.DeviceResume, adminapi.Ask{}, "gate-8"); e.Detail != `no device is called "gate-8"` {
		t.Errorf("%q", e.Detail)
	}
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
		Status: func(context.Context) []adminapi.Token { return []adminapi.Token{{Name: "first"}} },
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
	refused(b, problem.PIN, 403, r.HSMUnlock, []byte("wrong"))
	got = ""
	refused(b, problem.Input, 400, r.HSMUnlock, nil)
	refused(b, problem.Input, 400, r.HSMUnlock, []byte(long+"9"))
	if got != "" {
		t.Error("a PIN of a wrong length was tried")
	}
	refused(b, problem.NotFound, 404, r.HSMDrain, adminapi.None{}, "third")
	refused(b, problem.Locked, 503, r.Status, adminapi.None{})
	if tokens := must(b, r.HSMStatus, adminapi.None{}); len(tokens) != 1 {
		t.Errorf("%+v", tokens)
	}
}

// TestInternal: an error that is not in the table is a problem too, with its text.
func TestInternal(t *testing.T) {
	s := &Server{Logger: hclog.NewNullLogger(), HSM: HSM{Drain: func(context.Context, string, bool) error { return errors.New("odd") }}}
	b := &bench{T: t, Caller: serve(t, s.LockedHandler())}
	if e := refused(b, problem.Internal, 500, adminapi.Routes.HSMDrain, adminapi.None{}, "first"); e.Detail != "odd" {
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
