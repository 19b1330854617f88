package softhsmtest

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

// cborPaths are the calls of a device.
var cborPaths = []string{"/v1/apply", "/v1/countersign", "/v1/outcome"}

func wantAnswer(t *testing.T, got device.Answer, want device.Answer) {
	t.Helper()
	if got.Status != want.Status || got.Code != want.Code || got.Type != deviceapi.ProblemType {
		t.Errorf("answered %d, code %d, %s: want %d, code %d, problem+json", got.Status, uint8(got.Code), got.Type, want.Status, uint8(want.Code))
	}
}

func wantRefusal(t *testing.T, err error, want device.Refusal) {
	t.Helper()
	var got *device.Refusal
	if !errors.As(err, &got) || *got != want {
		t.Errorf("error %v, want status %d, code %d", err, want.Status, uint8(want.Code))
	}
}

var noDevice = device.Answer{Status: http.StatusForbidden, Code: protocol.CodeDevice}

func TestDeviceIdentity(t *testing.T) {
	b := newBench(t)
	anonymous := must[*device.Device](t)(device.Anonymous(b.reach()))
	gate := b.device("gate")
	call := func(t *testing.T, d *device.Device, path string) device.Answer {
		t.Helper()
		return must[device.Answer](t)(d.Post(t.Context(), device.Call{Path: path, Type: deviceapi.BodyType, Body: []byte{0xA0}}))
	}
	for _, path := range cborPaths {
		wantAnswer(t, call(t, anonymous, path), noDevice)
		wantAnswer(t, call(t, gate, path), device.Answer{Status: http.StatusBadRequest, Code: protocol.CodeFormat})
	}
	renewal := must[device.Answer](t)(anonymous.Post(t.Context(), device.Call{Path: "/v1/renew", Type: "application/json", Body: []byte("{}")}))
	wantAnswer(t, renewal, noDevice)
	for _, step := range []struct {
		verb string
		want device.Answer
	}{
		{"suspend", noDevice},
		{"resume", device.Answer{Status: http.StatusBadRequest, Code: protocol.CodeFormat}},
		{"revoke", noDevice},
	} {
		args := []string{"device", step.verb, "gate"}
		if step.verb == "revoke" {
			args = append(args, "--yes")
		}
		if r, err := b.Ctl(t.Context(), args...); err != nil || r.Code != 0 {
			t.Fatalf("%s: %+v, %v", step.verb, r, err)
		}
		for _, path := range cborPaths {
			wantAnswer(t, call(t, gate, path), step.want)
		}
	}
}

func TestMalformedRequests(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	good := b.applyRequest(p, p.Next(100))
	body := good.Marshal()
	badText, badM1, otherVersion := good, good, good
	badText.Order.Text = "free\u202Esdrawkcab"
	badM1.M1 = good.M1[:40]
	otherVersion.M1 = slices.Concat([]byte{0x12}, good.M1[1:])
	for _, c := range []struct {
		name string
		call device.Call
		want device.Answer
	}{
		{"JSON", device.Call{Type: "application/json", Body: body}, device.Answer{}},
		{"no type", device.Call{Body: body}, device.Answer{}},
		{"nothing", device.Call{Type: deviceapi.BodyType}, device.Answer{}},
		{"cut short", device.Call{Type: deviceapi.BodyType, Body: body[:len(body)-1]}, device.Answer{}},
		{"trailing byte", device.Call{Type: deviceapi.BodyType, Body: append(slices.Clone(body), 0)}, device.Answer{}},
		{"indefinite", device.Call{Type: deviceapi.BodyType, Body: slices.Concat([]byte{0xBF}, body[1:], []byte{0xFF})}, device.Answer{}},
		{"nested deeply", device.Call{Type: deviceapi.BodyType, Body: bytes.Repeat([]byte{0x81}, 4096)}, device.Answer{}},
		{"1 GiB declared", device.Call{Type: deviceapi.BodyType, Body: []byte{0xA1, 0x01, 0x5A, 0x40, 0, 0, 0}}, device.Answer{}},
		{"16 KiB", device.Call{Type: deviceapi.BodyType, Body: make([]byte, 16<<10)}, device.Answer{}},
		{"text that lies", device.Call{Type: deviceapi.BodyType, Body: badText.Marshal()}, device.Answer{}},
		{"M1 cut short", device.Call{Type: deviceapi.BodyType, Body: badM1.Marshal()}, device.Answer{}},
		{"version 2", device.Call{Type: deviceapi.BodyType, Body: otherVersion.Marshal()}, device.Answer{Code: protocol.CodeVersion}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.call.Path, c.want.Status = "/v1/apply", http.StatusBadRequest
			if c.want.Code == 0 {
				c.want.Code = protocol.CodeFormat
			}
			b.changes(nothing, func() {
				wantAnswer(t, must[device.Answer](t)(gate.Post(t.Context(), c.call)), c.want)
			})
		})
	}
	if _, err := gate.Apply(t.Context(), good); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// applyRequest is what an honest device asks for a P1.
func (b *bench) applyRequest(p *phone.Phone, p1 message.P1) deviceapi.ApplyRequest {
	b.Helper()
	return deviceapi.ApplyRequest{
		M1: b.apply(p, p1).M1, Order: deviceapi.Order{Services: []protocol.Service{p1.Service}},
		Link: deviceapi.LinkWire, Nonce: device.NewNonce(),
	}
}

// granted is a session that a device has a handle for.
type granted struct {
	*phone.Session
	req deviceapi.ApplyRequest
	res deviceapi.ApplyResponse
}

// grant runs the first round trip at a device of the rig.
func (b *bench) grant(d *device.Device, p *phone.Phone, order deviceapi.Order) granted {
	b.Helper()
	s := b.apply(p, p.Next(order.Services[0]))
	g := granted{Session: s, req: deviceapi.ApplyRequest{M1: s.M1, Order: order, Link: deviceapi.LinkWire, Nonce: device.NewNonce()}}
	g.res = must[deviceapi.ApplyResponse](b.T)(d.Apply(b.Context(), g.req))
	if err := s.Open(g.res.M2); err != nil || s.P2.Code != 0 {
		b.Fatalf("challenge %+v, %v", s.P2, err)
	}
	return g
}

var door = deviceapi.Order{Services: []protocol.Service{100}}

// TestOutcome: only the device that holds a decision may report its outcome, also twice.
func TestOutcome(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	g := b.grant(gate, p, door)
	res := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), deviceapi.CountersignRequest{
		Handle: g.res.Handle, M3: b.m3(g.Session, protocol.Approve),
	}))
	keys := trust.Keyring{Root: p.Trust.Root, KeyCerts: p.Trust.KeyCerts(trust.UseDecision), Now: uint64(time.Now().Unix())}
	d := must[receipt.Decision](t)(receipt.Verify(keys, res.Decision))
	done := deviceapi.OutcomeRequest{Transaction: d.Transaction, Performed: true}
	unknown := done
	unknown.Transaction[0] ^= 1
	notFound := device.Refusal{Status: http.StatusNotFound, Code: protocol.CodeRefused}
	wantRefusal(t, gate.Outcome(t.Context(), unknown), notFound)
	wantRefusal(t, b.device("other").Outcome(t.Context(), done), notFound)
	for range 2 {
		if err := gate.Outcome(t.Context(), done); err != nil {
			t.Error(err)
		}
	}
}

// TestReplayedM3 sends the same countersignature again and again.
func TestReplayedM3(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	b.changes(acted, func() {
		c := b.link()
		s := b.challenge(c, p, p.Next(100))
		m3 := b.m3(s, protocol.Approve)
		seen := [][]byte{}
		for range 5 {
			m4 := must[[]byte](t)(c.Ask(m3))
			p4, err := s.Result(m3, m4)
			if err != nil {
				t.Fatal(err)
			}
			wantResult(t, p4, message.P4{Result: protocol.ResultApproved})
			r := m4[2:10]
			for _, earlier := range seen {
				if bytes.Equal(earlier, r) {
					t.Errorf("r %x came twice", r)
				}
			}
			seen = append(seen, r)
		}
		wantResult(t, b.settle(b.link(), s, m3), message.P4{Result: protocol.ResultApproved}) // on another link
	})
}

// TestReplayedM1 gets the M2 that is there: the device applies an M1 once.
func TestReplayedM1(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	s := b.apply(p, p.Next(100))
	first := b.ask(s.M1)
	if again := b.ask(s.M1); !bytes.Equal(first, again) {
		t.Errorf("M2 %x, then %x", first, again)
	}
}

func TestBadCountersignature(t *testing.T) {
	b := newBench(t)
	p := b.phone("alice")
	c := b.link()
	s := b.challenge(c, p, p.Next(100))
	good := b.m3(s, protocol.Approve)
	_, raw, err := s.OpenM3(good)
	if err != nil {
		t.Fatal(err)
	}
	approved := must[message.P3](t)(message.ParseP3(raw))
	for _, bad := range []struct {
		name    string
		attempt uint8
		p3      func(*message.P3)
		code    protocol.Code
	}{
		{"another signature", 0, func(p *message.P3) { p.Signature[0] ^= 1 }, protocol.CodeSignature},
		{"signature of zeros", 0, func(p *message.P3) { p.Signature = [64]byte{} }, protocol.CodeSignature},
		{"verdict turned round", 0, func(p *message.P3) { p.Verdict = protocol.Refuse }, protocol.CodeSignature},
		{"key that was not enrolled", 0, func(p *message.P3) { p.Slot = protocol.SlotUV }, protocol.CodeSignature},
		{"proof that was not signed", 0, func(p *message.P3) { p.Proof = make([]byte, message.ProofSize) }, protocol.CodeSignature},
		{"second attempt without a first", 1, func(*message.P3) {}, protocol.CodeSerial},
	} {
		t.Run(bad.name, func(t *testing.T) {
			p3 := approved
			bad.p3(&p3)
			b.changes(nothing, func() {
				wantResult(t, b.settle(c, s, s.Seal(bad.attempt, p3)), message.P4{Reason: bad.code})
			})
		})
	}
	b.changes(acted, func() {
		wantResult(t, b.settle(c, s, good), message.P4{Result: protocol.ResultApproved})
	})
}

// wireView is what anybody between phone and appliance sees of an authorization.
type wireView struct{ m1, m2, m3, m4 int }

// TestUnknownClient: a client that is not enrolled and a refused one look the same, to the device
// too.
func TestUnknownClient(t *testing.T) {
	b := newBench(t)
	known, other := b.phone("alice"), b.phone("bob")
	suspended := b.phone("carol")
	if r, err := b.Ctl(t.Context(), "client", "suspend", "carol"); err != nil || r.Code != 0 {
		t.Fatalf("suspend: %+v, %v", r, err)
	}
	stranger := phone.Stranger(known.Trust)
	forged := *other
	forged.ID = known.ID // another's key under a known name
	views := map[string]wireView{}
	codes := map[string]protocol.Code{}
	for name, c := range map[string]struct {
		p       *phone.Phone
		verdict protocol.Verdict
	}{
		"unknown": {stranger, protocol.Approve}, "refused": {known, protocol.Refuse},
		"suspended": {suspended, protocol.Approve}, "forged": {&forged, protocol.Approve},
	} {
		link := b.link()
		s := b.apply(c.p, c.p.Next(100))
		m2 := must[[]byte](t)(link.Ask(s.M1))
		if err := s.Open(m2); err != nil || s.P2.Code != 0 {
			t.Fatalf("%s: challenge %+v, %v", name, s.P2, err)
		}
		m3 := b.m3(s, c.verdict)
		m4 := must[[]byte](t)(link.Ask(m3))
		p4, err := s.Result(m3, m4)
		if err != nil || p4.Result != protocol.ResultDenied {
			t.Fatalf("%s: %+v, %v", name, p4, err)
		}
		views[name], codes[name] = wireView{len(s.M1), len(m2), len(m3), len(m4)}, p4.Reason
	}
	for name, want := range map[string]protocol.Code{
		"unknown": protocol.CodeRefused, "refused": protocol.CodeUserRefused,
		"suspended": protocol.CodeSuspended, "forged": protocol.CodeSignature,
	} {
		if codes[name] != want {
			t.Errorf("%s: code %d, want %d", name, uint8(codes[name]), uint8(want))
		}
		if views[name] != views["refused"] {
			t.Errorf("%s: sizes %v, a refused one has %v", name, views[name], views["refused"])
		}
	}
	if acts := must[[]harness.Act](t)(b.Acts()); len(acts) != 0 {
		t.Errorf("acts %+v", acts)
	}
}
