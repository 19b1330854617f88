package softhsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/rig/device"
	"countersign/softhsm-test/rig/phone"
	"countersign/softhsm-test/rig/tamper"
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

// TestForeignCertificate: one of another authority does not get through the
// handshake, whatever name is in it.
func TestForeignCertificate(t *testing.T) {
	b := newBench(t)
	spiffe := &url.URL{Scheme: "spiffe", Host: "dev.countersign.example", Path: "/device/dev-relay"}
	cert := selfSigned(t, spiffe)
	conn := must[*tls.Conn](t)(tls.Dial("tcp", strings.TrimPrefix(b.URL, "https://"), &tls.Config{
		InsecureSkipVerify:   true, // the other end is not what is tested
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}))
	t.Cleanup(func() { _ = conn.Close() })
	// In TLS 1.3 the client is done before the server has looked at its certificate:
	// the alert is the first thing to read.
	_, err := conn.Read(make([]byte, 1))
	var alert *net.OpError
	if !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("a certificate of another authority: %v, want an alert", err)
	}
}

func selfSigned(t *testing.T, id *url.URL) tls.Certificate {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device/dev-relay"}, URIs: []*url.URL{id},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
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

func TestHandles(t *testing.T) {
	b := newBench(t)
	gate, other := b.device("gate"), b.device("other")
	p := b.phone("alice")
	g := b.grant(gate, p, door)
	m3 := b.m3(g.Session, protocol.Approve)
	next := b.grant(gate, p, door)
	handle := g.res.Handle
	dead := device.Refusal{Status: http.StatusGone, Code: protocol.CodeExpired}
	malformed := device.Refusal{Status: http.StatusBadRequest, Code: protocol.CodeFormat}
	for _, c := range []struct {
		name   string
		by     *device.Device
		handle []byte
		want   device.Refusal
	}{
		{"first bit altered", gate, tamper.Flip(handle, 0), dead},
		{"hour altered", gate, tamper.Flip(handle, 31), dead},
		{"nonce altered", gate, tamper.Flip(handle, 40), dead},
		{"last bit altered", gate, tamper.Flip(handle, -1), dead},
		{"cut short", gate, handle[:10], dead},
		{"of another device", other, handle, dead},
		{"longer than any", gate, make([]byte, deviceapi.MaxHandle+1), malformed},
		{"of another session", gate, next.res.Handle, malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.changes(nothing, func() {
				_, err := c.by.Countersign(t.Context(), deviceapi.CountersignRequest{Handle: c.handle, M3: m3})
				wantRefusal(t, err, c.want)
			})
		})
	}
	b.changes(denied, func() { // spent, and by no relay acted on
		res := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), deviceapi.CountersignRequest{Handle: handle, M3: m3}))
		if res.Result != protocol.ResultApproved {
			t.Errorf("result %v", res.Result)
		}
	})
}

func TestOrders(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	euro := func(minor uint64) *protocol.Amount { return &protocol.Amount{Minor: minor, Currency: "EUR"} }
	for _, c := range []struct {
		name     string
		order    deviceapi.Order
		proposal *message.Proposal
		floor    protocol.Level
		strict   bool
		code     protocol.Code
		level    protocol.Level // 0: 1
	}{
		{name: "amounts agree", order: deviceapi.Order{Amount: euro(1200)}, proposal: &message.Proposal{Amount: euro(1200)}},
		{name: "amounts differ", order: deviceapi.Order{Amount: euro(1201)}, proposal: &message.Proposal{Amount: euro(1200)}, code: protocol.CodePolicy},
		{name: "texts differ", order: deviceapi.Order{Amount: euro(1), Text: "tea"}, proposal: &message.Proposal{Text: "coffee"}, code: protocol.CodePolicy},
		{name: "another currency", order: deviceapi.Order{Amount: &protocol.Amount{Minor: 1200, Currency: "USD"}}, code: protocol.CodePolicy},
		{name: "another service", order: deviceapi.Order{Services: []protocol.Service{100}}, code: protocol.CodeService},
		{name: "floor of the device", order: deviceapi.Order{Amount: euro(1)}, floor: 2, level: 2},
		{name: "strict device", order: deviceapi.Order{Amount: euro(1)}, strict: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p1 := p.Next(200)
			p1.Proposal = c.proposal
			if c.order.Services == nil {
				c.order.Services = []protocol.Service{200}
			}
			s := b.apply(p, p1)
			res := must[deviceapi.ApplyResponse](t)(gate.Apply(t.Context(), deviceapi.ApplyRequest{
				M1: s.M1, Order: c.order, Link: deviceapi.LinkWire, Floor: c.floor, Strict: c.strict, Nonce: device.NewNonce(),
			}))
			if err := s.Open(res.M2); err != nil || s.P2.Code != c.code {
				t.Errorf("code %d, %v: want %d", uint8(s.P2.Code), err, uint8(c.code))
			}
			if want := max(c.level, 1); c.code == 0 && (s.P2.Level != want || res.Level != want) {
				t.Errorf("level %d, the device is told %d: want %d", uint8(s.P2.Level), uint8(res.Level), uint8(want))
			}
			if got := s.P2.Factors.Has(protocol.FactorStrict); got != (c.strict && c.code == 0) {
				t.Errorf("factors %v for strict %v", s.P2.Factors, c.strict)
			}
			if (res.Handle == nil) != (c.code != 0) {
				t.Errorf("handle of %d bytes with code %d", len(res.Handle), uint8(c.code))
			}
		})
	}
}

// TestDecisionForAnotherOrder puts a true decision before devices that it is not
// for: the checks of PROTOCOL.md §3.1.
func TestDecisionForAnotherOrder(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	order := deviceapi.Order{Services: []protocol.Service{200}, Amount: &protocol.Amount{Minor: 1200, Currency: "EUR"}}
	g := b.grant(gate, p, order)
	res := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), deviceapi.CountersignRequest{
		Handle: g.res.Handle, M3: b.m3(g.Session, protocol.Approve),
	}))
	check := must[receipt.Check](t)(gate.Check(g.req.Nonce, g.res.M2))
	check.Services, check.Amount = order.Services, order.Amount
	d, err := check.Verify(res.Decision)
	if err != nil || d.Result != protocol.ResultApproved || *d.Amount != *order.Amount || d.Statement != g.Statement().Hash() {
		t.Fatalf("decision %+v, %v", d, err)
	}
	for name, c := range map[string]struct {
		alter func(*receipt.Check)
		code  protocol.Code
	}{
		"another amount":         {func(c *receipt.Check) { c.Amount = &protocol.Amount{Minor: 4900, Currency: "EUR"} }, protocol.CodePolicy},
		"another currency":       {func(c *receipt.Check) { c.Amount = &protocol.Amount{Minor: 1200, Currency: "USD"} }, protocol.CodePolicy},
		"another service":        {func(c *receipt.Check) { c.Services = []protocol.Service{100} }, protocol.CodePolicy},
		"another device":         {func(c *receipt.Check) { c.Device[0] ^= 1 }, protocol.CodeDevice},
		"another nonce":          {func(c *receipt.Check) { c.Nonce[0] ^= 1 }, protocol.CodeReplayed},
		"another challenge":      {func(c *receipt.Check) { c.Challenges = []protocol.Challenge{{}} }, protocol.CodeReplayed},
		"a higher floor":         {func(c *receipt.Check) { c.Floor = 2 }, protocol.CodeLevel},
		"too late":               {func(c *receipt.Check) { c.Elapsed = 2 * time.Hour }, protocol.CodeExpired},
		"another root":           {func(c *receipt.Check) { c.Root = mustKey(t) }, protocol.CodeCertificate},
		"evidence that is asked": {func(c *receipt.Check) { c.Strict = true }, protocol.CodeFormat},
	} {
		altered := check
		c.alter(&altered)
		if _, err := altered.Verify(res.Decision); !errors.Is(err, c.code) {
			t.Errorf("%s: %v, want code %d", name, err, uint8(c.code))
		}
	}
	for bit := 0; bit < 8*len(res.Decision); bit += 7 {
		if _, err := check.Verify(tamper.Flip(res.Decision, bit)); err == nil {
			t.Errorf("a decision with bit %d changed was taken", bit)
		}
	}
	b.outcomes(gate, d.Transaction)
}

func mustKey(t *testing.T) protocol.PublicKey {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return must[protocol.PublicKey](t)(protocol.CompressKey(&key.PublicKey))
}

// outcomes: the first report of the device that has the decision counts.
func (b *bench) outcomes(gate *device.Device, id protocol.TransactionID) {
	b.Helper()
	done := deviceapi.OutcomeRequest{Transaction: id, Performed: true}
	unknown := done
	unknown.Transaction[0] ^= 1
	nobodys := device.Refusal{Status: http.StatusNotFound, Code: protocol.CodeRefused}
	wantRefusal(b.T, gate.Outcome(b.Context(), unknown), nobodys)
	wantRefusal(b.T, b.device("other").Outcome(b.Context(), done), nobodys)
	for range 2 {
		if err := gate.Outcome(b.Context(), done); err != nil {
			b.Error(err)
		}
	}
}
