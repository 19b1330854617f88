package softhsmtest

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver of the store

	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

// wideServices are of numbers that take two bytes on the wire, which PROTOCOL.md §3
// counts its sizes with.
const wideServices = `
[[service]]
id = 400
name = "gate.open"
level = 1

[[service]]
id = 500
name = "transfer"
currency = "EUR"
levels = [
  { from = "0.00", level = 1 },
  { from = "50.00", level = 2 },
  { from = "1000.00", level = 3 },
]
`

// activate makes the default policy and these services the newest one.
func (b *bench) activate(services string) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "policy.toml")
	if err := os.WriteFile(path, append(policy.Default(), services...), 0o600); err != nil {
		b.Fatal(err)
	}
	if r, err := b.Ctl(b.Context(), "policy", "apply", path); err != nil || r.Code != 0 {
		b.Fatalf("%+v, %v", r, err)
	}
}

// execSQL changes a store file that is not open.
func execSQL(ctx context.Context, path, statement string, args ...any) error {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path}).String())
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, statement, args...)
	return errors.Join(err, db.Close())
}

// sizesAsked is one authorization, and the sizes of its messages.
type sizesAsked struct {
	name     string
	service  protocol.Service
	proposal *message.Proposal // by the phone
	order    deviceapi.Order   // by the device
	level    protocol.Level
	want     [4]int // M1 to M4; zero: at most 140
}

// TestSizes holds the live appliance to the sizes of PROTOCOL.md §3 under the inputs
// it states: service ≥ 256, 19-byte device name, epochs < 24.
func TestSizes(t *testing.T) {
	b := newBench(t)
	p := b.phoneWith("alice", phone.Full())
	b.activate(wideServices)
	gate := b.named("gate", strings.Repeat("g", 19))
	euro := func(minor uint64) *protocol.Amount { return &protocol.Amount{Minor: minor, Currency: "EUR"} }
	most := euro(1<<32 - 1)
	for _, c := range []sizesAsked{
		{name: "level 1", service: 400, level: 1, want: [4]int{82, 74, 88, 31}},
		{
			name: "level 2 with amount and 21-byte text", service: 500, level: 2, want: [4]int{82, 108, 106, 31},
			order: deviceapi.Order{Amount: euro(80_000), Text: strings.Repeat("t", 21)},
		},
		{name: "level 1, all proposed", service: 500, level: 1, proposal: &message.Proposal{Amount: euro(4999), Text: strings.Repeat("t", 32)}},
		{name: "level 2, all proposed", service: 500, level: 2, proposal: &message.Proposal{Amount: euro(99_999), Text: strings.Repeat("t", 32)}},
		{name: "level 3, all proposed", service: 500, level: 3, proposal: &message.Proposal{Amount: most, Text: strings.Repeat("t", 32)}},
		{name: "level 3, all ordered", service: 500, level: 3, order: deviceapi.Order{Amount: most, Text: strings.Repeat("t", 32)}},
		{name: "level 3 without an amount", service: 300, level: 3},
	} {
		t.Run(c.name, func(t *testing.T) { b.sizes(gate, p, c) })
	}
}

// named enrols a device that shows this name.
func (b *bench) named(name, display string) *device.Device {
	b.Helper()
	r, err := b.Ctl(b.Context(), "device", "invite", name, "--display", display, "-o", "json")
	if err != nil || r.Code != 0 {
		b.Fatalf("%+v, %v", r, err)
	}
	_, code, _ := strings.Cut(r.Stdout, `"activation_code": "`)
	code, _, _ = strings.Cut(code, `"`)
	d := must[*device.Device](b.T)(device.Enrol(b.Context(), b.reach(), code))
	b.Cleanup(d.Close)
	return d
}

// sizes runs an authorization with a wrong password, where there is one, and then
// with the right one.
func (b *bench) sizes(d *device.Device, p *phone.Phone, c sizesAsked) {
	b.Helper()
	p1 := p.Next(c.service)
	p1.Proposal, c.order.Services = c.proposal, []protocol.Service{c.service}
	s := b.apply(p, p1)
	res := must[deviceapi.ApplyResponse](b.T)(d.Apply(b.Context(), deviceapi.ApplyRequest{
		M1: s.M1, Order: c.order, Link: deviceapi.LinkWire, Nonce: device.NewNonce(),
	}))
	if err := s.Open(res.M2); err != nil || s.P2.Level != c.level {
		b.Fatalf("challenge %+v, %v: want level %d", s.P2, err, uint8(c.level))
	}
	send := func(a phone.Answer, want protocol.Result) (m3, m4 []byte) {
		m3 = must[[]byte](b.T)(s.Sign(b.Context(), a))
		answer := must[deviceapi.CountersignResponse](b.T)(d.Countersign(b.Context(), deviceapi.CountersignRequest{Handle: res.Handle, M3: m3}))
		if answer.Result != want {
			b.Fatalf("result %v, want %v", answer.Result, want)
		}
		return m3, answer.M4
	}
	right := s.Honest(protocol.Approve)
	wrongM4 := 0
	if c.level > 1 {
		_, m4 := send(s.Guess(0), protocol.ResultRetry)
		wrongM4, right.Attempt = len(m4), 1
	}
	m3, m4 := send(right, protocol.ResultApproved)
	got := [4]int{len(s.M1), len(res.M2), len(m3), len(m4)}
	b.Logf("%s: %v bytes, %d in all", c.name, got, got[0]+got[1]+got[2]+got[3])
	if c.want != [4]int{} && got != c.want {
		b.Errorf("messages of %v bytes, want %v", got, c.want)
	}
	if most := max(got[0], got[1], got[2], got[3], wrongM4); most > 140 {
		b.Errorf("a message of %d bytes", most)
	}
}
