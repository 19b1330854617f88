package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/relay/link"
	"countersign/relay/uplink"
)

// rig is a running relay with its appliance.
type rig struct {
	*fake
	dir   string
	relay *Relay
	stop  func() error // and waits until it has stopped
}

// enrolled returns a fake and the configuration of a device that it has enrolled.
func enrolled(t *testing.T) (*fake, Config) {
	t.Helper()
	return enrolledFor(t, time.Hour)
}

// enrolledFor sets the life of the device's certificates.
func enrolledFor(t *testing.T, life time.Duration) (*fake, Config) {
	t.Helper()
	f := newFake(t)
	f.life = life
	dir := filepath.Join(t.TempDir(), "state")
	_, err := uplink.Enrol(t.Context(), uplink.EnrolConfig{URL: f.server.URL, CAFile: f.caFile, Code: f.code(), StateDir: dir})
	must(t, err)
	return f, Config{
		StateDir: dir, URL: f.server.URL, CAFile: f.caFile, Floor: 1, Links: []Link{{"tcp:127.0.0.1:0", deviceapi.LinkWire}},
		Orders: Orders{Accept: []protocol.Service{100, 200}},
		Hook:   Hook{Command: []string{"/bin/sh", "-c", `cat >> "$0"`, filepath.Join(dir, "hook.log")}, Timeout: 10 * time.Second},
		Log:    hclog.New(&hclog.LoggerOptions{Output: t.Output(), Level: hclog.Debug}), ActWait: 10 * time.Second,
	}
}

func start(t *testing.T, f *fake, c Config) *rig {
	t.Helper()
	r, err := New(c)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	var isStopped atomic.Bool
	g := &rig{fake: f, dir: c.StateDir, relay: r, stop: func() error {
		cancel()
		if isStopped.Swap(true) {
			return nil
		}
		return <-done
	}}
	t.Cleanup(func() { _ = g.stop() })
	return g
}

func newRig(t *testing.T) *rig {
	t.Helper()
	f, c := enrolled(t)
	return start(t, f, c)
}

func (g *rig) hookLog() []string {
	raw, err := os.ReadFile(filepath.Join(g.dir, "hook.log"))
	if err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")[:bytes.Count(raw, []byte("\n"))]
}

// challengeOf returns the challenge that an M3 without an M1 belongs to.
func (g *rig) challengeOf(m3 []byte) *challenge {
	g.relay.mu.Lock()
	defer g.relay.mu.Unlock()
	return g.relay.liveLocked(nil, m3)
}

// expire ends the challenge of an M3.
func (g *rig) expire(m3 []byte) {
	c := g.challengeOf(m3)
	g.relay.mu.Lock()
	c.expires = time.Now()
	g.relay.mu.Unlock()
	g.relay.step(&exchange{challenge: c}, c.authorization, event{kind: challengeEnded})
}

// isOffered reports whether an approval is offered to second approvers.
func (g *rig) isOffered() bool {
	g.relay.mu.Lock()
	defer g.relay.mu.Unlock()
	return g.relay.newest != nil && g.relay.newest.isOffered()
}

// endWait ends the wait for a second approver.
func (g *rig) endWait() {
	g.relay.mu.Lock()
	a := g.relay.newest
	e := event{kind: waitEnded, pending: a.pending}
	g.relay.mu.Unlock()
	g.relay.step(nil, a, e)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// phoneClient is the client's side of the protocol on one link.
type phoneClient struct {
	t       *testing.T
	fake    *fake
	conn    *link.Conn
	key     signingKey
	uv      *signingKey // signs approvals, if it is there
	p1      []byte
	m1      []byte
	es      message.Secret
	channel message.Channel
	m3      []byte
	p3      []byte
}

func (g *rig) dial(t *testing.T) *link.Conn {
	t.Helper()
	return dialAt(t, g.relay.Links()[0])
}

func dialAt(t *testing.T, addr string) *link.Conn {
	t.Helper()
	conn, err := link.Dial(t.Context(), addr)
	must(t, err)
	conn.SetTimeouts(link.Timeouts{Receive: 20 * time.Second, Send: 20 * time.Second})
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

var counter atomic.Uint32

func (g *rig) phone(t *testing.T, service protocol.Service) *phoneClient {
	t.Helper()
	return g.phoneAt(t, g.relay.Links()[0], service)
}

func (g *rig) phoneAt(t *testing.T, addr string, service protocol.Service) *phoneClient {
	t.Helper()
	p := &phoneClient{t: t, fake: g.fake, conn: dialAt(t, addr), key: newSigningKey(t)}
	serial := protocol.NewSerial(counter.Add(1), [8]byte{1})
	p1 := message.P1{Client: protocol.ClientIDOf(p.key.public(t)), Serial: serial, Service: service, Level: 1}
	if service == protocol.ServiceStatus {
		p1.Asked = &serial
	}
	p.p1 = p1.Marshal()
	g.set(func() { g.clients[p1.Client] = p.key.public(t) })
	var err error
	p.m1, p.es, err = message.SealM1(message.Recipient{Root: g.root.public(t).RootID(), Suite: message.Suite1, Epoch: 1, Key: g.kemKey()}, p.p1)
	must(t, err)
	return p
}

// ask1 sends a message and returns the answer.
func ask1(t *testing.T, conn *link.Conn, msg []byte) []byte {
	t.Helper()
	must(t, conn.Send(msg))
	answer, err := conn.Receive()
	must(t, err)
	return answer
}

// id returns the phone's client id.
func (p *phoneClient) id() protocol.ClientID { return protocol.ClientIDOf(p.key.public(p.t)) }

// challenge sends M1 and makes the M3 that answers M2.
func (p *phoneClient) challenge(v protocol.Verdict) (m2 []byte) {
	p.t.Helper()
	m2 = ask1(p.t, p.conn, p.m1)
	chal, err := message.ChallengeOf(m2)
	if err != nil {
		p.t.Fatalf("M2 is %x: %v", m2, err)
	}
	p.channel = message.NewChannel(p.es, p.m1, chal)
	p2, err := p.channel.OpenM2(m2)
	must(p.t, err)
	statement := message.NewStatement(p.fake.root.public(p.t).RootID(), p.p1, chal, p2)
	approval, key := message.Approval{Verdict: v, Slot: protocol.SlotSigning}, p.key
	if p.uv != nil && v == protocol.Approve {
		approval, key = message.Approval{Verdict: v, Slot: protocol.SlotUV, Proof: make([]byte, message.ProofSize)}, *p.uv
	}
	sig, err := message.Countersign(p.t.Context(), key, statement, approval)
	must(p.t, err)
	p.p3 = message.P3{Verdict: v, Signature: sig, Slot: approval.Slot, Proof: approval.Proof}.Marshal()
	p.m3 = p.channel.SealM3(0, p.p3)
	return m2
}

// finish sends M3 on a link and opens M4.
func (p *phoneClient) finish(conn *link.Conn) message.P4 {
	p.t.Helper()
	return p.open(ask1(p.t, conn, p.m3))
}

func (p *phoneClient) open(m4 []byte) message.P4 {
	p.t.Helper()
	raw, err := p.channel.OpenM4(p.m3, m4)
	if err != nil {
		p.t.Fatalf("M4 is %x: %v", m4, err)
	}
	p4, err := message.ParseP4(raw)
	must(p.t, err)
	return p4
}

// wantError checks that a message is an ME.
func wantError(t *testing.T, msg []byte, want message.LinkError) {
	t.Helper()
	got, err := message.ParseLinkError(msg)
	if err != nil || got != want {
		t.Errorf("answer %x is %+v, %v; want %+v", msg, got, err, want)
	}
}

// wantClosed checks that the relay has closed a link.
func wantClosed(t *testing.T, conn *link.Conn) {
	t.Helper()
	if _, err := conn.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("link gives %v, want its end", err)
	}
}

func frame(length uint16, rest ...byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, length), rest...)
}
