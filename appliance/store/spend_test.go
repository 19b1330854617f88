package store

import (
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/receipt"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600))

func sampleSpend() Spend {
	return Spend{
		AnswerKey:     AnswerKey{Client: protocol.ClientID{1}, Serial: protocol.NewSerial(7, [8]byte{7}), M3: [32]byte{3}},
		Decision:      receipt.Decision{Result: protocol.ResultApproved, Service: 100, Level: 1, Device: protocol.DeviceID{2}},
		PolicyVersion: 4,
		Charges:       []Charge{{AmountLimit: 100, Amount: 40}},
		Salt:          [16]byte{9},
		Now:           now,
	}
}

func sampleView() View {
	return View{
		Client: Client{Status: Active, Highest: 6}, Device: Device{Status: Active},
		PolicyVersion: 4, Used: []Used{{Amount: 60}},
	}
}

// conflicts are what a counter was spent by, beside the highest counter.
var conflicts = []struct {
	name  string
	apply func(Spend, *View)
	code  protocol.Code
}{
	{"fresh", func(Spend, *View) {}, 0},
	{"first of all", func(_ Spend, v *View) { v.Client.Highest = -1 }, 0},
	{"highest equal", func(_ Spend, v *View) { v.Client.Highest = 7 }, protocol.CodeSerial},
	{"highest above", func(_ Spend, v *View) { v.Client.Highest = math.MaxUint32 }, protocol.CodeSerial},
	{"other random part", func(s Spend, v *View) {
		v.Client.Highest, v.Spent = 7, &Spent{AnswerKey: s.AnswerKey}
		v.Spent.Serial[11]++
	}, protocol.CodeClone},
	{"other bytes", func(s Spend, v *View) {
		v.Client.Highest, v.Spent = 7, &Spent{AnswerKey: s.AnswerKey}
		v.Spent.M3[0]++
	}, protocol.CodeSerial},
	{"other bytes, highest brought back", func(s Spend, v *View) {
		v.Spent = &Spent{AnswerKey: s.AnswerKey}
		v.Spent.M3[0]++
	}, protocol.CodeSerial},
	{"other attempt", func(s Spend, v *View) {
		v.Client.Highest, v.Spent = 9, &Spent{AnswerKey: s.AnswerKey}
		v.Spent.Attempt++
	}, protocol.CodeSerial},
}

// TestConclude goes through every combination of what may stand against an
// approval; want is the first rule of PROTOCOL.md §4 that applies.
func TestConclude(t *testing.T) {
	statuses := []Status{0, Active, Suspended, Revoked}
	n := 0
	for _, conflict := range conflicts {
		for _, client := range statuses {
			for _, device := range statuses {
				for bits := range 8 {
					s, v := sampleSpend(), sampleView()
					conflict.apply(s, &v)
					v.Client.Status, v.Device.Status = client, device
					refused, policy, limit := bits&1 != 0, bits&2 != 0, bits&4 != 0
					if refused {
						s.Denial = protocol.CodeUserRefused
					}
					if policy {
						v.PolicyVersion++
					}
					if limit {
						v.Used[0].Amount++
					}
					want := firstReason([]reason{
						{conflict.code != 0, conflict.code},
						{client == Suspended, protocol.CodeSuspended},
						{client != Active || device != Active, protocol.CodeRefused},
						{refused, protocol.CodeUserRefused},
						{policy, protocol.CodePolicy},
						{limit, protocol.CodeLimit},
					})
					name := fmt.Sprintf("%s, client %v, device %v, %03b", conflict.name, client, device, bits)
					checkConclusion(t, name, s.Conclude(v), expected{want, conflict.code != 0})
					n++
				}
			}
		}
	}
	if n != 8*4*4*8 {
		t.Fatalf("%d combinations", n)
	}
}

type reason struct {
	holds bool
	code  protocol.Code
}

func firstReason(all []reason) protocol.Code {
	for _, r := range all {
		if r.holds {
			return r.code
		}
	}
	return 0
}

type expected struct {
	reason   protocol.Code
	conflict bool
}

func checkConclusion(t *testing.T, name string, got Conclusion, want expected) {
	t.Helper()
	result, told := protocol.ResultDenied, protocol.CodeRefused
	if want.reason == 0 {
		result, told = protocol.ResultApproved, 0
	}
	out := got.Outcome
	switch {
	case out.Reason != want.reason || out.Result != result || out.Replayed:
		t.Errorf("%s: %v, reason %d; want %v, %d", name, out.Result, out.Reason, result, want.reason)
	case out.Decision.Result != result || out.Decision.Reason != told:
		t.Errorf("%s: the device is told %v, %d", name, out.Decision.Result, out.Decision.Reason)
	case got.Spend == want.conflict || got.Charge != (want.reason == 0):
		t.Errorf("%s: spend %v, charge %v", name, got.Spend, got.Charge)
	case out.Unspent != want.conflict || (got.Record == nil) != want.conflict:
		t.Errorf("%s: unspent %v, record %+v", name, out.Unspent, got.Record)
	case got.Record != nil && (got.Record.Kind != audit.KindDecision || got.Record.Words()["reason"] != uint64(want.reason) && want.reason != 0):
		t.Errorf("%s: record %+v", name, got.Record)
	case !out.At.Equal(time.Date(2026, 3, 1, 11, 0, 0, 123456000, time.UTC)):
		t.Errorf("%s: at %v", name, out.At)
	}
}

func TestConcludeRepeat(t *testing.T) {
	s, v := sampleSpend(), sampleView()
	stored := Outcome{Result: protocol.ResultDenied, Reason: protocol.CodeLimit, Decision: receipt.Decision{Level: 3}, At: now}
	v.Spent = &Spent{AnswerKey: s.AnswerKey, Outcome: stored}
	v.Client.Status, v.PolicyVersion, v.Client.Highest = Revoked, 99, 1000
	got := s.Conclude(v)
	stored.Replayed = true
	if !reflect.DeepEqual(got, Conclusion{Outcome: stored}) {
		t.Fatalf("got %+v", got)
	}
	if v.Spent.Outcome.Replayed {
		t.Fatal("the stored outcome was changed")
	}
}

func TestLimits(t *testing.T) {
	const most = math.MaxUint64
	for _, c := range []struct {
		name   string
		charge Charge
		used   Used
		over   bool
	}{
		{"no limit", Charge{Amount: most}, Used{Amount: most, Count: most}, false},
		{"exactly", Charge{Amount: 40, AmountLimit: 100}, Used{Amount: 60}, false},
		{"one over", Charge{Amount: 41, AmountLimit: 100}, Used{Amount: 60}, true},
		{"alone over", Charge{Amount: 101, AmountLimit: 100}, Used{}, true},
		{"used over", Charge{Amount: 0, AmountLimit: 100}, Used{Amount: 101}, true},
		{"nothing more", Charge{Amount: 0, AmountLimit: 100}, Used{Amount: 100}, false},
		{"sum wraps", Charge{Amount: most, AmountLimit: most}, Used{Amount: 1}, true},
		{"last", Charge{CountLimit: 3}, Used{Count: 2}, false},
		{"one too many", Charge{CountLimit: 3}, Used{Count: 3}, true},
		{"either", Charge{Amount: 1, AmountLimit: 9, CountLimit: 1}, Used{Count: 1}, true},
	} {
		s := Spend{Charges: []Charge{{}, c.charge}}
		if got := s.anyCharge([]Used{{}, c.used}, Charge.exceeds); got != c.over {
			t.Errorf("%s: exceeds is %v", c.name, got)
		}
	}
	s := Spend{Charges: make([]Charge, 2)}
	if !s.anyCharge(make([]Used, 1), Charge.exceeds) {
		t.Error("a charge whose use was not read is within its limit")
	}
}

func TestStatus(t *testing.T) {
	for s, want := range map[Status]string{0: "invalid", Active: "active", Suspended: "suspended", Revoked: "revoked", 9: "invalid"} {
		if s.String() != want {
			t.Errorf("status %d is %q, want %q", uint8(s), s, want)
		}
	}
}
