package server

import (
	"reflect"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/appliance/appliancetest"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
)

// newest returns the newest audit record of a kind.
func (b *bench) newest(kind string) (r adminapi.Record) {
	b.Helper()
	for _, r = range must(b, adminapi.Routes.Audit, adminapi.None{}) {
		if r.Kind == kind {
			return r
		}
	}
	b.Errorf("no record of kind %s", kind)
	return r
}

// reads requires these fields of the newest audit record of a kind, and its subject and id. A nil value is an absent
// field.
func (b *bench) reads(kind, subject, id string, want map[string]any) adminapi.Record {
	b.Helper()
	r := b.newest(kind)
	if r.Subject != subject || r.ID != id {
		b.Errorf("%s about %s with id %q, want %s with id %q", kind, r.Subject, r.ID, subject, id)
	}
	for name, value := range want {
		if got := r.Fields[name]; !reflect.DeepEqual(got, value) {
			b.Errorf("%s of %s: %s is %v, want %v", r.Kind, r.Subject, name, got, value)
		}
	}
	return r
}

func party(name, id string) map[string]any { return map[string]any{"name": name, "id": id} }

func factors(names ...any) []any { return append([]any{}, names...) }

// TestRecordsOfDecisions: the record of a decision says who countersigned what, where, with which factors and how it
// ended, in words.
func TestRecordsOfDecisions(t *testing.T) {
	b := newBench(t)
	alice, bob := b.appliance.EnrolFull("alice"), b.appliance.EnrolFull("bob", "approver")
	gate, me := party("gate", b.appliance.Gate.ID.String()), alice.ID.String()

	s := alice.Challenge(appliancetest.Payment, appliancetest.EUR(6050))
	s.Must(s.With(0, nil))
	r := b.reads("decision", "client/alice", me, map[string]any{
		"result": "approved", "client": party("alice", me), "device": gate, "service": 200.0, "service_name": "payment",
		"amount": "60.50 EUR", "level": 2.0, "factors": factors("signature", "password"), "serial": s.P1.Serial.String(),
		"code": nil, "reason": nil, "statement": nil, "decision": nil,
	})
	if e, ok := r.Fields["evidence"].(map[string]any); !ok || e["statement"] != s.Statement.String() || e["decision"] == "" {
		t.Errorf("evidence %v", r.Fields["evidence"])
	}

	s = alice.Challenge(appliancetest.Door, nil)
	s.Must(s.M3(protocol.Refuse))
	b.reads("decision", "client/alice", me, map[string]any{
		"result": "denied", "code": 18.0, "reason": "user refused", "service_name": "door.open", "amount": nil,
	})

	_, pending := b.appliance.Pending(alice)
	b.reads("decision", "client/alice", me, map[string]any{"result": "pending", "code": 21.0, "amount": "10000.00 EUR"})
	s = bob.Second(pending.Res.NextHandle)
	s.Must(s.With(0, nil))
	b.reads("final", "client/alice", me, map[string]any{
		"result": "approved", "by": party("bob", bob.ID.String()), "code": nil, "reason": nil,
	})
}

// TestRecordsOfQuestions: a dry run and a question about a serial are nothing that was approved: neither in the audit
// nor in the count of decisions.
func TestRecordsOfQuestions(t *testing.T) {
	b := newBench(t)
	alice := b.appliance.EnrolPhone("alice")
	me := alice.ID.String()
	before := must(b, adminapi.Routes.Status, adminapi.None{}).Counts
	ask := func(service protocol.Service, about *protocol.Serial) {
		p1 := alice.P1(service)
		p1.Asked = about
		s, err := alice.Apply(p1, deviceapi.Order{Services: []protocol.Service{appliancetest.Door, service}})
		if err != nil {
			t.Fatal(err)
		}
		appliancetest.Expect(t, s.Approve(), protocol.ResultApproved, 0)
	}
	ask(protocol.ServiceDryRun, nil)
	b.reads("decision", "client/alice", me, map[string]any{"result": "dry run", "service": 0.0})
	s := alice.Challenge(appliancetest.Door, nil)
	appliancetest.Expect(t, s.Must(s.M3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
	ask(protocol.ServiceStatus, &s.P1.Serial)
	b.reads("decision", "client/alice", me, map[string]any{
		"result": "status", "service": 2.0,
		"asked": map[string]any{"serial": s.P1.Serial.String(), "result": "denied", "code": 18.0, "reason": "user refused"},
	})
	after := must(b, adminapi.Routes.Status, adminapi.None{}).Counts
	if after.Decisions != before.Decisions+1 || after.Questions != before.Questions+2 {
		t.Errorf("counts went from %+v to %+v, want one more decision and two more questions", before, after)
	}
}

// TestRecordsNameParties: every record of a client or a device has its name and, once it is enrolled, its id. The one
// who gets the name of a revoked client later is another.
func TestRecordsNameParties(t *testing.T) {
	b := newBench(t)
	r := adminapi.Routes
	must(b, r.ClientInvite, adminapi.Invite{}, "carol")
	b.reads("client", "client/carol", "", map[string]any{"event": "invited"})
	if p, ok := b.newest("change").Fields["parameters"].(map[string]any); !ok || p["name"] != "carol" {
		t.Errorf("the transcript of the invitation has the parameters %v", p)
	}
	alice := b.appliance.EnrolPhone("alice")
	id := alice.ID.String()
	b.reads("client", "client/alice", id, map[string]any{"event": "enrolled"})
	must(b, r.ClientSuspend, adminapi.None{}, "alice")
	b.reads("client", "client/alice", id, map[string]any{"event": "suspended"})
	must(b, r.DeviceSuspend, adminapi.None{}, "gate")
	b.reads("device", "device/gate", b.appliance.Gate.ID.String(), map[string]any{"event": "suspended"})

	for _, kind := range []string{audit.KindFailures, audit.KindRepeats} { // they have ids alone
		gate, me := "device/"+b.appliance.Gate.ID.String(), "client/"+id
		for subject, named := range map[string]string{gate: "device/gate", me: "client/alice", "other clients": "other clients", "client/00": "client/00"} {
			if err := b.appliance.Store.Append(t.Context(), audit.NewRecord(kind, subject, map[string]any{"limit": 3})); err != nil {
				t.Fatal(err)
			}
			want := ""
			if named != subject {
				_, want, _ = strings.Cut(subject, "/")
			}
			b.reads(kind, named, want, map[string]any{"limit": 3.0})
		}
	}

	must(b, r.ClientRevoke, adminapi.None{}, "alice")
	code, err := enrol.ParseActivationCode(must(b, r.ClientInvite, adminapi.Invite{Replace: true}, "alice").ActivationCode)
	b.reads("client", "client/alice", "", map[string]any{"event": "invited"})
	if err == nil {
		_, err = b.appliance.Enrol.Client(t.Context(), b.appliance.Stranger().Request(code))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range must(b, r.Audit.With("limit", "1000"), adminapi.None{}) {
		if retired := "client/alice~" + id[:8]; rec.ID == id && rec.Subject != retired {
			t.Errorf("%s %v about %s, want %s", rec.Kind, rec.Fields["event"], rec.Subject, retired)
		}
	}
}
