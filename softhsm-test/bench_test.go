package softhsmtest

import (
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/harness/phone"
)

// bench is a running appliance with its relay, for one test.
type bench struct {
	*testing.T
	*harness.Appliance
}

// newBench starts an appliance for a test that runs in parallel with others. env is added to
// the environment of the programs.
func newBench(t *testing.T, env ...string) *bench {
	t.Helper()
	t.Parallel()
	dir := harness.TempDir(t)
	a, err := harness.Start(t.Context(), harness.Config{Bin: programs, Dir: dir + "/dev", Cwd: dir, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := a.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(a.Log())
		}
	})
	return &bench{t, a}
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// phone enrols one.
func (b *bench) phone(name string) *phone.Phone {
	b.Helper()
	code := must[string](b.T)(b.Invite(b.Context(), "client", name))
	return must[*phone.Phone](b.T)(phone.Enrol(b.Context(), b.URL, code))
}

// phoneWith enrols one with more than a signing key, and these roles.
func (b *bench) phoneWith(name string, m phone.Means, roles ...string) *phone.Phone {
	b.Helper()
	code := must[string](b.T)(b.Invite(b.Context(), "client", name, roles...))
	return must[*phone.Phone](b.T)(phone.EnrolWith(b.Context(), phone.Application{URL: b.URL, Code: code, Means: m}))
}

// device enrols one.
func (b *bench) device(name string) *device.Device {
	b.Helper()
	code := must[string](b.T)(b.Invite(b.Context(), "device", name))
	d := must[*device.Device](b.T)(device.Enrol(b.Context(), b.reach(), code))
	b.Cleanup(d.Close)
	return d
}

// reach is what a device is told of the appliance.
func (b *bench) reach() device.Config { return device.Config{URL: b.URL, CA: b.CA} }

func (b *bench) tally() harness.Tally {
	b.Helper()
	return must[harness.Tally](b.T)(b.Tally(b.Context()))
}

// changes holds the counts against what a step is to add to them.
func (b *bench) changes(want harness.Tally, step func()) {
	b.Helper()
	before := b.tally()
	step()
	if got := b.tally(); got != before.Plus(want) {
		b.Errorf("counts went from %+v to %+v: want %+v more", before, got, want)
	}
}

// Counts of what an authorization leaves behind.
var (
	nothing = harness.Tally{}
	denied  = harness.Tally{Decisions: 1, Audited: 1}
	acted   = harness.Tally{Decisions: 1, Audited: 1, Acts: 1}
)

// link connects to the relay.
func (b *bench) link() link.Conn {
	b.Helper()
	conn := must[link.Conn](b.T)(link.Dial(b.Context(), b.Link))
	b.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask sends one message over a link of its own.
func (b *bench) ask(msg []byte) []byte {
	b.Helper()
	return must[[]byte](b.T)(link.Ask(b.Context(), b.Link, msg))
}

// apply seals a P1.
func (b *bench) apply(p *phone.Phone, p1 message.P1) *phone.Session {
	b.Helper()
	return must[*phone.Session](b.T)(p.Apply(p1.Marshal()))
}

// challenge runs the first round trip of a P1 over a link.
func (b *bench) challenge(c link.Conn, p *phone.Phone, p1 message.P1) *phone.Session {
	b.Helper()
	s := b.apply(p, p1)
	m2 := must[[]byte](b.T)(c.Ask(s.M1))
	if err := s.Open(m2); err != nil {
		b.Fatalf("%v: M2 is %x", err, m2)
	}
	return s
}

// m3 is the phone's answer to the challenge.
func (b *bench) m3(s *phone.Session, v protocol.Verdict) []byte {
	b.Helper()
	return must[[]byte](b.T)(s.Countersign(b.Context(), v))
}

// settle sends an M3 over a link and opens the M4.
func (b *bench) settle(c link.Conn, s *phone.Session, m3 []byte) message.P4 {
	b.Helper()
	m4 := must[[]byte](b.T)(c.Ask(m3))
	p4, err := s.Result(m3, m4)
	if err != nil {
		b.Fatalf("%v: M4 is %x", err, m4)
	}
	return p4
}

// authorize runs a P1 to its end.
func (b *bench) authorize(p *phone.Phone, p1 message.P1) message.P4 {
	b.Helper()
	c := b.link()
	s := b.challenge(c, p, p1)
	if s.P2.Code != 0 {
		b.Fatalf("challenge refused with code %d", uint8(s.P2.Code))
	}
	return b.settle(c, s, b.m3(s, protocol.Approve))
}

// wantLinkError holds an answer against an ME of this code.
func wantLinkError(t *testing.T, answer []byte, code protocol.Code) {
	t.Helper()
	me, err := message.ParseLinkError(answer)
	if err != nil {
		t.Fatalf("answer %x is no ME: %v", answer, err)
	}
	if me.Code != code {
		t.Errorf("ME of code %d, want %d", uint8(me.Code), uint8(code))
	}
}

func wantResult(t *testing.T, got message.P4, want message.P4) {
	t.Helper()
	if got.Result != want.Result || got.Reason != want.Reason {
		t.Errorf("result %v, reason %d: want %v, %d", got.Result, uint8(got.Reason), want.Result, uint8(want.Reason))
	}
}
