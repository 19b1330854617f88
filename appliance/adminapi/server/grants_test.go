package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/keyplan"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
)

// grant is a call that grants something, in a situation that prepare makes.
type grant struct {
	kind    policy.Kind
	prepare func(w *world) // before the quorum is 2
	call    func(w *world) error
}

// call returns a call of a route.
func call[Req, Res any](route adminapi.Route[Req, Res], body Req, names ...string) func(*world) error {
	return func(w *world) error {
		_, err := route.Call(w.Context(), w.Caller, body, names...)
		return err
	}
}

func step(route adminapi.Route[adminapi.KeyStep, []adminapi.Key], body adminapi.KeyStep, ref string) func(*world) error {
	return call(route, body, ref)
}

var r = adminapi.Routes

// Classes of the routes that no quorum applies to.
const (
	reads   = "reads"   // changes nothing
	brakes  = "brakes"  // takes something away, at once
	votes   = "votes"   // is one vote of a request, or ends one
	notes   = "notes"   // writes an audit record of what a peer reports
	serves  = "serves"  // opens or lends a token to the daemon that has its keys
	granted = "granted" // see granting
)

// access is the class of every route.
var access = map[string]string{
	"Status": reads, "Doctor": reads, "Audit": reads, "ClientList": reads, "ClientShow": reads, "DeviceList": reads, "DeviceShow": reads,
	"KeyList": reads, "KeyPlan": reads, "KeyAttest": reads, "KeyShow": reads, "ChangeList": reads, "ChangeShow": reads,
	"AdminList": reads, "AdminShow": reads, "PolicyShow": reads, "PolicyAt": reads, "PolicyHistory": reads,
	"HSMStatus": reads,

	"ClientSuspend": brakes, "ClientRevoke": brakes, "DeviceSuspend": brakes, "DeviceRevoke": brakes,
	"KeySuspend": brakes, "AdminSuspend": brakes, "HSMDrain": brakes,

	"ChangeSign": votes, "ChangeWithdraw": votes,

	"KeyKept": notes, "StoreKept": notes,

	"HSMUnlock": serves, "HSMResume": serves,

	"ClientInvite": granted, "ClientUnlock": granted, "ClientResume": granted, "DeviceInvite": granted, "DeviceResume": granted,
	"KeyBackup": granted, "KeyCreate": granted, "KeyRotate": granted, "KeyActivate": granted, "KeyRetire": granted, "KeyResume": granted,
	"KeyDestroy": granted, "AdminAdd": granted, "AdminResume": granted, "AdminRevoke": granted, "PolicyApply": granted, "StoreBackup": granted,
}

func rotated(w *world)   { w.Step("rotate", "decision") }
func activated(w *world) { rotated(w); w.Step("activate", "decision") }

// rulingOut prepares a version that rules out the earlier ones.
func rulingOut(name string) func(*world) {
	return func(w *world) {
		if _, err := w.TryStep(keyplan.Step{Verb: keyplan.Rotate, Compromised: true}, name); err != nil {
			w.Fatal(err)
		}
	}
}

func retired(w *world) {
	activated(w)
	if _, err := w.TryStep(keyplan.Step{Verb: keyplan.Retire, Early: true}, "decision@1"); err != nil {
		w.Fatal(err)
	}
}

// granting lists the calls of each route that grants something.
var granting = map[string][]grant{
	"ClientInvite": {
		{policy.ClientInvite, nil, call(r.ClientInvite, adminapi.Invite{Roles: []string{"approver"}}, "vera")},
		{policy.ClientReplace, nil, call(r.ClientInvite, adminapi.Invite{Replace: true}, "carol")},
		{policy.ClientInvite, nil, call(r.ClientInvite, adminapi.Invite{Replace: true}, "vera")}, // enrols just the same
	},
	"ClientResume": {{policy.ClientResume, func(w *world) { must(w.bench, r.ClientSuspend, adminapi.None{}, "carol") }, call(r.ClientResume, adminapi.Ask{}, "carol")}},
	"ClientUnlock": {{policy.ClientUnlock, (*world).guess, call(r.ClientUnlock, adminapi.Ask{}, "dora")}},
	"DeviceInvite": {
		{policy.DeviceInvite, nil, call(r.DeviceInvite, adminapi.Invite{Floor: 2}, "door")},
		{policy.DeviceReplace, nil, call(r.DeviceInvite, adminapi.Invite{Replace: true}, "gate")},
		{policy.DeviceInvite, nil, call(r.DeviceInvite, adminapi.Invite{Replace: true}, "door")},
	},
	"DeviceResume": {{policy.DeviceResume, func(w *world) { must(w.bench, r.DeviceSuspend, adminapi.None{}, "gate") }, call(r.DeviceResume, adminapi.Ask{}, "gate")}},
	"KeyCreate":    {{policy.KeyRotate, (*world).withoutWrap, step(r.KeyCreate, adminapi.KeyStep{}, "wrap")}},
	"KeyRotate": {
		{policy.KeyRotate, nil, step(r.KeyRotate, adminapi.KeyStep{}, "decision")},
		{policy.KeyRotate, nil, step(r.KeyRotate, adminapi.KeyStep{Compromised: true}, "decision")},
		{policy.KeyRetire, nil, step(r.KeyRotate, adminapi.KeyStep{Compromised: true}, "decision")},
		{policy.RootRotate, nil, step(r.KeyRotate, adminapi.KeyStep{}, "root")},
		{policy.KeyRetire, nil, step(r.KeyRotate, adminapi.KeyStep{Compromised: true}, "root")},
	},
	"KeyActivate": {
		{policy.KeyActivate, rotated, step(r.KeyActivate, adminapi.KeyStep{}, "decision")},
		{policy.KeyActivate, activated, step(r.KeyActivate, adminapi.KeyStep{}, "decision@1")},
		{policy.KeyRetire, rulingOut("decision"), step(r.KeyActivate, adminapi.KeyStep{}, "decision")},
		{policy.KeyRetire, rulingOut("root"), step(r.KeyActivate, adminapi.KeyStep{}, "root")},
		{policy.RootRotate, func(w *world) { w.Step("rotate", "root") }, step(r.KeyActivate, adminapi.KeyStep{}, "root")},
	},
	"KeyRetire": {
		{policy.KeyRetire, activated, step(r.KeyRetire, adminapi.KeyStep{Early: true}, "decision")},
		{policy.KeyRetire, activated, step(r.KeyRetire, adminapi.KeyStep{Compromised: true}, "decision@1")},
	},
	"KeyResume":  {{policy.KeyResume, func(w *world) { activated(w); must(w.bench, r.KeySuspend, adminapi.KeyStep{}, "decision@1") }, step(r.KeyResume, adminapi.KeyStep{}, "decision@1")}},
	"KeyDestroy": {{policy.KeyDestroy, retired, step(r.KeyDestroy, adminapi.KeyStep{}, "decision@1")}},
	"KeyBackup":  {{policy.KeyBackup, nil, call(r.KeyBackup, adminapi.KeyBackupAsk{Partial: true})}},
	"StoreBackup": {{policy.StoreBackup, nil, func(w *world) error {
		_, database, err := w.CopyStore(w.Context(), r.StoreBackup)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, database)
		return errors.Join(err, database.Close())
	}}},
	"AdminAdd":    {{policy.AdminAdd, nil, call(r.AdminAdd, adminapi.Administer{PublicKey: "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"}, "eve")}},
	"AdminResume": {{policy.AdminAdd, func(w *world) { must(w.bench, r.AdminSuspend, adminapi.None{}, "cat") }, call(r.AdminResume, adminapi.Administer{}, "cat")}},
	"AdminRevoke": {{policy.AdminRevoke, nil, call(r.AdminRevoke, adminapi.Administer{}, "cat")}},
	"PolicyApply": {{policy.PolicyApply, nil, call(r.PolicyApply, adminapi.Apply{Document: string(policy.Default())})}},
}

// TestEveryRouteHasItsQuorum: every route is in the table of access, and every route that grants something has a call
// that a quorum of 2 holds back.
func TestEveryRouteHasItsQuorum(t *testing.T) {
	routes := reflect.TypeOf(r)
	for i := range routes.NumField() {
		name := routes.Field(i).Name
		switch class := access[name]; {
		case class == "":
			t.Errorf("route %s is in no class: does it grant something? Then it needs a kind of change request", name)
		case (class == granted) != (len(granting[name]) > 0):
			t.Errorf("route %s is %s and has %d calls", name, class, len(granting[name]))
		}
		if class := access[name]; class == reads != strings.HasPrefix(routeOf(i).Pattern(), "GET ") {
			t.Errorf("route %s is %s: %s", name, class, routeOf(i).Pattern())
		}
	}
	if len(access) != routes.NumField() {
		t.Errorf("%d routes are in the table, and there are %d", len(access), routes.NumField())
	}
	used := map[policy.Kind]bool{}
	for _, calls := range granting {
		for _, g := range calls {
			used[g.kind] = true
		}
	}
	for _, k := range policy.Kinds() {
		if !used[k] {
			t.Errorf("no call needs %s", k)
		}
	}
}

func routeOf(i int) interface{ Pattern() string } {
	return reflect.ValueOf(r).Field(i).Interface().(interface{ Pattern() string })
}

// world is an appliance with three administrators, carol's phone and the device gate, behind its admin socket.
type world struct {
	*bench
	*appliancetest.Board
}

// Context of the test.
func (w *world) Context() context.Context { return w.T.Context() }

func newWorld(t *testing.T) *world {
	t.Helper()
	board := appliancetest.NewBoard(t, "[quorum]\n")
	b := &bench{T: t, appliance: board.Bench}
	w := &world{bench: b, Board: board}
	board.EnrolPhone("carol")
	w.serve()
	return w
}

// serve puts the appliance as it is now on a socket.
func (w *world) serve() {
	w.server = &Server{Appliance: w.Appliance, Logger: hclog.NewNullLogger(), StartedAt: time.Now()}
	w.Caller = serve(w.T, w.server.Handler())
}

// guess has dora's phone send a wrong password.
func (w *world) guess() {
	s := w.EnrolFull("dora").Challenge(appliancetest.Payment, appliancetest.EUR(6000))
	s.Must(s.With(0, make([]byte, 16)))
}

// withoutWrap moves to an appliance that has no wrap key.
func (w *world) withoutWrap() {
	w.Board = appliancetest.NewBoardWithout(w.T, "wrap")
	w.appliance = w.Bench
	w.serve()
}

// atTwo applies a policy in which one kind takes two administrators.
func (w *world) atTwo(k policy.Kind) {
	w.T.Helper()
	w.Executes(rules.Draft(appliancetest.QuorumPolicy(fmt.Sprintf("[quorum]\n%q = 2\n", k.String()))))
}

// state is everything that an administrator can grant.
func (w *world) state() string {
	w.T.Helper()
	ctx := w.Context()
	clients, err1 := w.Store.ListClients(ctx)
	devices, err2 := w.Store.ListDevices(ctx)
	admins, err3 := w.Store.ListAdmins(ctx)
	keys, err4 := w.Store.ListKeys(ctx)
	active, err5 := w.Store.ActivePolicy(ctx)
	tokenKeys, err6 := w.Token.Keys(ctx)
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		w.T.Fatal(err)
	}
	var guards []store.Guard
	for _, c := range clients {
		g, err := w.Store.Guard(ctx, c.ID)
		if err != nil {
			w.T.Fatal(err)
		}
		guards = append(guards, g)
	}
	all, err := json.Marshal([]any{clients, devices, admins, keys, active, len(tokenKeys), guards, w.Tally().Invitations})
	if err != nil {
		w.T.Fatal(err)
	}
	return string(all)
}

// records returns the audit records after a sequence number.
func (w *world) records(after uint64) []audit.Record {
	w.T.Helper()
	records, err := w.Store.Records(w.Context(), after, 1000)
	if err != nil {
		w.T.Fatal(err)
	}
	return records
}

// vectorParameters returns the names of the parameters in the vector of each kind.
func vectorParameters(t *testing.T) map[policy.Kind][]string {
	t.Helper()
	var v struct {
		Kinds map[policy.Kind]string `json:"kinds"`
	}
	raw, err := os.ReadFile("../../change/testdata/change.json")
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	names := map[policy.Kind][]string{}
	for k, text := range v.Kinds {
		document, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		r, err := change.Parse(document)
		if err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		for name := range r.Parameters {
			names[k] = append(names[k], name)
		}
	}
	return names
}

// TestQuorumOfEveryGrant: with a quorum of 2 for its kind, no call grants anything before a second administrator has
// countersigned; then it does. The audit names who acted.
func TestQuorumOfEveryGrant(t *testing.T) {
	documented := vectorParameters(t)
	for name, calls := range granting {
		for i, g := range calls {
			t.Run(fmt.Sprintf("%s/%d", name, i), func(t *testing.T) {
				w := newWorld(t)
				if g.prepare != nil {
					g.prepare(w)
				}
				w.atTwo(g.kind)
				before, since := w.state(), w.Tally().Records
				err := g.call(w)
				var e *adminapi.Error
				if !errors.As(err, &e) || e.Type != problem.Quorum || e.Change == nil || e.Change.Required != 2 || e.Change.More != 1 {
					t.Fatalf("answered %v (%+v)", err, e)
				}
				if w.state() != before {
					t.Fatal("something was granted")
				}
				for p := range e.Change.Parameters {
					if !slices.Contains(append(documented[policy.Kind(e.Change.Kind)], "early", "compromised", "resume"), p) {
						t.Errorf("parameter %q of %s is not in its vector", p, e.Change.Kind)
					}
				}
				w.signed(e.Change.ID, g.kind)
				if grants := g.kind == policy.KeyBackup || g.kind == policy.StoreBackup; grants {
					w.spentOnce(g, e.Change.ID)
				} else if w.state() == before {
					t.Error("nothing was granted although two have countersigned")
				}
				w.actors(since)
			})
		}
	}
}

// signed hands in ann's countersignature over the socket.
func (w *world) signed(id string, k policy.Kind) {
	w.T.Helper()
	c := must(w.bench, r.ChangeShow, adminapi.None{}, id)
	if k == policy.DeviceInvite || k == policy.ClientInvite || k == policy.KeyRetire {
		k = policy.Kind(c.Kind) // a replacement takes what an invitation takes, and what rules out what retiring takes
	}
	if c.Kind != k.String() {
		w.T.Errorf("the request is %s, want %s", c.Kind, k)
	}
	signature := w.Ann.Sign(w.T, change.HashOf(c.Document))
	if c := must(w.bench, r.ChangeSign, adminapi.Sign{Signature: signature}, id); c.State != "executed" && c.State != "granted" {
		w.T.Errorf("%s is %s: %s", c.Kind, c.State, c.Reason)
	}
}

// spentOnce makes one backup with an approval, and none with it again.
func (w *world) spentOnce(g grant, id string) {
	w.T.Helper()
	if c := must(w.bench, r.ChangeShow, adminapi.None{}, id); c.State != "granted" {
		w.T.Errorf("before the backup the request is %s", c.State)
	}
	if err := g.call(w); err != nil {
		w.T.Errorf("with two countersignatures: %v", err)
	}
	if c := must(w.bench, r.ChangeShow, adminapi.None{}, id); c.State != "executed" {
		w.T.Errorf("after the backup the request is %s", c.State)
	}
	var e *adminapi.Error
	if err := g.call(w); !errors.As(err, &e) || e.Type != problem.Quorum || e.Change.ID == id {
		w.T.Errorf("again: %v", err)
	}
}

// actors requires that every administrative record names who acted: the user of the socket, and the operator whose
// countersignature executed a change.
func (w *world) actors(since uint64) {
	w.T.Helper()
	operators := 0
	for _, rec := range w.records(since) {
		actor, _ := rec.Words()["actor"].(map[string]any)
		if actor["uid"] != uint64(os.Getuid()) {
			w.T.Errorf("%s %s %v: the actor is %v", rec.Kind, rec.Subject, rec.Words()["event"], actor)
		}
		if actor["operator"] == "ann" {
			operators++
		}
	}
	if operators < 2 { // her signature, and what it executed
		w.T.Errorf("ann is the actor of %d records", operators)
	}
}

// TestBrakesNeverWait: with every quorum at 2, what takes something away takes effect at once, and the audit names the
// user who did it.
func TestBrakesNeverWait(t *testing.T) {
	w := newWorld(t)
	activated(w)
	var all []string
	for _, k := range policy.Kinds() {
		all = append(all, fmt.Sprintf("%q = 2", k.String()))
	}
	w.Executes(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n" + strings.Join(all, "\n") + "\n")))
	since := w.Tally().Records
	if c := must(w.bench, r.ClientSuspend, adminapi.None{}, "carol"); c.Status != "suspended" {
		t.Error(c.Status)
	}
	if c := must(w.bench, r.ClientRevoke, adminapi.None{}, "carol"); c.Status != "revoked" {
		t.Error(c.Status)
	}
	if d := must(w.bench, r.DeviceSuspend, adminapi.None{}, "gate"); d.Status != "suspended" {
		t.Error(d.Status)
	}
	if d := must(w.bench, r.DeviceRevoke, adminapi.None{}, "gate"); d.Status != "revoked" {
		t.Error(d.Status)
	}
	if k := must(w.bench, r.KeySuspend, adminapi.KeyStep{}, "decision@1"); k[0].State != "suspended" {
		t.Error(k[0].State)
	}
	if a := must(w.bench, r.AdminSuspend, adminapi.None{}, "cat"); a.Status != "suspended" {
		t.Error(a.Status)
	}
	records := w.records(since)
	if len(records) != 6 {
		t.Errorf("%d records", len(records))
	}
	for _, rec := range records {
		if actor, _ := rec.Words()["actor"].(map[string]any); actor["uid"] != uint64(os.Getuid()) {
			t.Errorf("%s %s: the actor is %v", rec.Kind, rec.Subject, actor)
		}
	}
}

// cutOff is the answer to a peer that leaves before it has all.
type cutOff struct {
	header http.Header
	left   int // bytes
}

func (c *cutOff) Header() http.Header { return c.header }
func (c *cutOff) WriteHeader(int)     {}
func (c *cutOff) Flush()              {}
func (c *cutOff) Write(b []byte) (int, error) {
	if c.left -= len(b); c.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(b), nil
}

func (c *cutOff) SetWriteDeadline(time.Time) error { return nil }

// TestCutOffBackup: a peer that leaves in the middle of a backup has not used its approval, and the
// connection is ended.
func TestCutOffBackup(t *testing.T) {
	w := newWorld(t)
	w.Executes(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n\"key.backup\" = 2\n\"store.backup\" = 2\n")))
	for path, g := range map[string]grant{
		"key/backup": granting["KeyBackup"][0], "store/backup": granting["StoreBackup"][0],
	} {
		var e *adminapi.Error
		if err := g.call(w); !errors.As(err, &e) || e.Change == nil {
			t.Fatal(err)
		}
		w.signed(e.Change.ID, g.kind)
		aborted := func() (cause any) {
			defer func() { cause = recover() }()
			body := strings.NewReader(`{"partial":true}`)
			if g.kind == policy.StoreBackup {
				body = strings.NewReader(`{}`)
			}
			w.server.Handler().ServeHTTP(&cutOff{http.Header{}, 100}, httptest.NewRequest(http.MethodPost, adminapi.Prefix+path, body))
			return nil
		}()
		if aborted != http.ErrAbortHandler {
			t.Errorf("%s: the answer ended well: %v", path, aborted)
		}
		if c := must(w.bench, r.ChangeShow, adminapi.None{}, e.Change.ID); c.State != "granted" {
			t.Errorf("%s: the request is %s", path, c.State)
		}
		w.spentOnce(g, e.Change.ID)
	}
}
