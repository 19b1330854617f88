package authorize_test

import (
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// TestPerformed: what the device reported about an act reaches the phone with the status of the serial, and only with
// the status.
func TestPerformed(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolFull("alice"), b.EnrolFull("bob", "approver")
	var question *appliancetest.Session // the last one, and its M3
	var m3 []byte
	ask := func(by *appliancetest.Phone, serial protocol.Serial) string {
		t.Helper()
		p1 := by.P1(protocol.ServiceStatus)
		p1.Asked = &serial
		var err error
		if question, err = by.Apply(p1, deviceapi.Order{Services: []protocol.Service{protocol.ServiceStatus}}); err != nil {
			t.Fatal(err)
		}
		m3 = question.M3(protocol.Approve)
		return toldOf(question.Must(m3))
	}
	report := func(r deviceapi.CountersignResponse, performed bool) {
		t.Helper()
		d, err := receipt.Verify(trust.Keyring{
			Root: b.Trust.Root, KeyCerts: b.Trust.KeyCerts(trust.UseDecision), Now: uint64(b.Clock.Now().Unix()),
		}, r.Decision)
		if err == nil {
			err = b.Authorize.Outcome(t.Context(), b.Gate, deviceapi.OutcomeRequest{Transaction: d.Transaction, Performed: performed})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	opened := alice.Challenge(door, nil)
	approval := opened.M3(protocol.Approve)
	answer := opened.Must(approval)
	want("before the report", ask(alice, opened.P1.Serial), "approved, not reported")
	report(answer.Res, false)
	report(answer.Res, true) // the first report stands
	want("the same question again", toldOf(question.Must(m3)), "approved, not performed")
	want("after the report", ask(alice, opened.P1.Serial), "approved, not performed")
	want("the M3 of the door again", toldOf(opened.Must(approval)), "no answer about a serial, not reported")

	first, pending := b.Pending(alice)
	want("a payment that waits", ask(alice, first.P1.Serial), "pending, not reported")
	second := bob.Second(pending.Res.NextHandle)
	report(second.Must(second.With(0, nil)).Res, true)
	want("a payment of two", ask(alice, first.P1.Serial), "approved, performed")
	want("for the approver", ask(bob, second.P1.Serial), "approved, performed")
}

// toldOf returns what an answer says about the serial in question and about its act.
func toldOf(a appliancetest.Answer) string {
	told, act := "no answer about a serial", "not reported"
	if a.P4.Asked != nil {
		told = a.P4.Asked.Result.String()
	}
	if a.P4.Performed != nil {
		act = map[bool]string{true: "performed", false: "not performed"}[*a.P4.Performed]
	}
	return told + ", " + act
}
