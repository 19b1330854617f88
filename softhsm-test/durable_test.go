package softhsmtest

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/phone"
)

// TestKilledAppliance: what was answered before kill -9 is answered again after it,
// and decided once.
func TestKilledAppliance(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	g, open := b.grant(gate, p, door), b.grant(gate, p, door)
	m3 := b.m3(g.Session, protocol.Approve)
	req := deviceapi.CountersignRequest{Handle: g.res.Handle, M3: m3}
	first := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), req))
	before := b.tally()

	children := must[[]rig.Process](t)(b.Children())
	names := []string{}
	for _, c := range children {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	if want := []string{"hsm-worker", "hsm-worker", "relayd"}; !slices.Equal(names, want) {
		t.Fatalf("children %v, want %v", names, want)
	}
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, c := range children {
		if err := c.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate = gate.At(b.URL)
	t.Cleanup(gate.Close)

	again := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), req))
	keys := trust.Keyring{Root: p.Trust.Root, KeyCerts: p.Trust.KeyCerts(trust.UseDecision), Now: uint64(time.Now().Unix())}
	one := must[receipt.Decision](t)(receipt.Verify(keys, first.Decision))
	two := must[receipt.Decision](t)(receipt.Verify(keys, again.Decision))
	if again.Result != protocol.ResultApproved || one.Transaction != two.Transaction || !bytes.Equal(one.Marshal(), two.Marshal()) {
		t.Errorf("decided %+v, after the restart %+v", one, two)
	}
	wantResult(t, must[message.P4](t)(g.Result(m3, again.M4)), message.P4{Result: protocol.ResultApproved})
	if after := b.tally(); after != before {
		t.Errorf("counts went from %+v to %+v", before, after)
	}
	// A challenge that was open is one still: apply stored nothing.
	res := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), deviceapi.CountersignRequest{
		Handle: open.res.Handle, M3: b.m3(open.Session, protocol.Approve),
	}))
	if res.Result != protocol.ResultApproved {
		t.Errorf("open challenge: result %v", res.Result)
	}
}

// TestRacingRepeats sends one countersignature many times at once.
func TestRacingRepeats(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	g := b.grant(gate, p, door)
	req := deviceapi.CountersignRequest{Handle: g.res.Handle, M3: b.m3(g.Session, protocol.Approve)}
	var mu sync.Mutex
	transactions := map[protocol.TransactionID]int{}
	keys := trust.Keyring{Root: p.Trust.Root, KeyCerts: p.Trust.KeyCerts(trust.UseDecision), Now: uint64(time.Now().Unix())}
	b.changes(denied, func() {
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				res, err := gate.Countersign(t.Context(), req)
				if err != nil {
					t.Error(err)
					return
				}
				d, err := receipt.Verify(keys, res.Decision)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				transactions[d.Transaction]++
			})
		}
		all.Wait()
	})
	if len(transactions) != 1 {
		t.Errorf("transactions %v, want one", transactions)
	}
}

func TestActivationCodes(t *testing.T) {
	b := newBench(t)
	text := must[string](t)(b.Invite(t.Context(), "client", "alice"))
	code := must[enrol.ActivationCode](t)(enrol.ParseActivationCode(text))
	pinned := must[trust.State](t)(phone.FetchTrust(t.Context(), b.URL, code.Root))
	p := must[*phone.Phone](t)(phone.Stranger(pinned))
	other := must[*phone.Phone](t)(phone.Stranger(pinned))
	post := func(p *phone.Phone, code enrol.ActivationCode, alter func([]byte) []byte) ([]byte, error) {
		body, _, err := p.EnrolRequest(t.Context(), code)
		if err != nil {
			t.Fatal(err)
		}
		return phone.PostEnrolment(t.Context(), phone.Enrolment{URL: b.URL, Trust: pinned, Body: alter(body)})
	}
	same := func(body []byte) []byte { return body }
	unknown := code
	if unknown.Secret[0] = 'A'; unknown == code {
		unknown.Secret[0] = 'B'
	}
	device := must[enrol.ActivationCode](t)(enrol.ParseActivationCode(must[string](t)(b.Invite(t.Context(), "device", "gate"))))
	refused := phone.Refusal{Status: http.StatusForbidden, Code: protocol.CodeRefused}
	wantEnrolRefusal := func(what string, err error, want phone.Refusal) {
		t.Helper()
		var got *phone.Refusal
		if !errors.As(err, &got) || *got != want {
			t.Errorf("%s: %v, want status %d, code %d", what, err, want.Status, uint8(want.Code))
		}
	}
	b.changes(nothing, func() {
		_, err := post(p, unknown, same)
		wantEnrolRefusal("unknown code", err, refused)
		_, err = post(p, device, same)
		wantEnrolRefusal("code for a device", err, refused)
		_, err = post(p, code, func(body []byte) []byte { return bytes.Replace(body, []byte(`"proof"`), []byte(`"prooF"`), 1) })
		wantEnrolRefusal("unknown member", err, phone.Refusal{Status: http.StatusBadRequest, Code: protocol.CodeFormat})
		_, err = post(p, code, func(body []byte) []byte { return append(body, ' ', '{', '}') })
		wantEnrolRefusal("trailing object", err, phone.Refusal{Status: http.StatusBadRequest, Code: protocol.CodeFormat})
		_, err = post(p, code, func([]byte) []byte { return make([]byte, 1<<20) })
		wantEnrolRefusal("1 MiB", err, phone.Refusal{Status: http.StatusBadRequest, Code: protocol.CodeFormat})
	})
	body, _, err := p.EnrolRequest(t.Context(), code)
	if err != nil {
		t.Fatal(err)
	}
	enrolment := phone.Enrolment{URL: b.URL, Trust: pinned, Body: body}
	b.changes(rig.Tally{Clients: 1}, func() {
		first := must[[]byte](t)(phone.PostEnrolment(t.Context(), enrolment))
		if again := must[[]byte](t)(phone.PostEnrolment(t.Context(), enrolment)); !bytes.Equal(first, again) {
			t.Errorf("answered %s, then %s", first, again)
		}
		_, err := post(other, code, same)
		wantEnrolRefusal("used code", err, refused)
	})
	second := must[enrol.ActivationCode](t)(enrol.ParseActivationCode(must[string](t)(b.Invite(t.Context(), "client", "twin"))))
	_, err = post(p, second, same)
	wantEnrolRefusal("key enrolled already", err, phone.Refusal{Status: http.StatusConflict, Code: protocol.CodeRefused})
}
