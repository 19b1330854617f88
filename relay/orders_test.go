package relay

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// program is a local program on the order socket.
type program struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

func newProgram(t *testing.T, c Config) *program {
	t.Helper()
	conn, err := net.Dial("unix", c.Orders.Socket)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	return &program{t, conn, bufio.NewScanner(conn)}
}

func (l *program) place(line string) {
	l.t.Helper()
	_, err := l.conn.Write([]byte(line + "\n"))
	must(l.t, err)
}

func (l *program) result() (r resultJSON) {
	l.t.Helper()
	if !l.in.Scan() {
		l.t.Fatalf("no result: %v", l.in.Err())
	}
	must(l.t, json.Unmarshal(l.in.Bytes(), &r))
	return r
}

func socketRig(t *testing.T, change func(*fake, *Config)) (*rig, *program) {
	t.Helper()
	f, c := enrolled(t)
	c.Orders = Orders{Socket: filepath.Join(c.StateDir, "orders")}
	if change != nil {
		change(f, &c)
	}
	g := start(t, f, c)
	return g, newProgram(t, c)
}

func (g *rig) waiting() int {
	g.relay.mu.Lock()
	defer g.relay.mu.Unlock()
	n := 0
	for _, a := range g.relay.orders {
		if a.state == offered {
			n++
		}
	}
	return n
}

func (g *rig) untilWaiting(t *testing.T, n int) {
	t.Helper()
	eventually(t, "orders wait", func() bool { return g.waiting() == n })
}

func TestOrderFromSocket(t *testing.T) {
	g, l := socketRig(t, nil)
	info, err := os.Stat(filepath.Join(g.dir, "orders"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, want 0600", info.Mode())
	}
	p := g.phone(t, 200)
	wantError(t, ask1(t, p.conn, p.m1), message.LinkError{Code: protocol.CodeNothingToApprove})
	l.place(`{"service":200,"amount":1250,"currency":"EUR","text":"2 coffees","reference":"T-17"}`)
	g.untilWaiting(t, 1)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	r := l.result()
	if r.Result != "approved" || !r.Performed || r.Service != 200 || *r.Amount != (ActAmount{1250, "EUR"}) || r.Reference != "T-17" || r.Transaction == "" {
		t.Errorf("program got %+v", r)
	}
	if lines := g.hookLog(); len(lines) != 1 || !strings.Contains(lines[0], `"reference":"T-17"`) {
		t.Errorf("hook got %v", lines)
	}
	next := g.phone(t, 200)
	wantError(t, ask1(t, next.conn, next.m1), message.LinkError{Code: protocol.CodeNothingToApprove})

	l.place(`{"services":[100,200]}`)
	g.untilWaiting(t, 1)
	next.challenge(protocol.Refuse)
	next.finish(next.conn)
	if r := l.result(); r.Result != "denied" || r.Performed || r.Code != protocol.CodeRefused {
		t.Errorf("program got %+v, want denied", r)
	}
}

// TestOrderOfAnother: while a phone has the only order, or the device acts on it, others are told that the device is
// busy, and afterwards that there is nothing to approve.
func TestOrderOfAnother(t *testing.T) {
	dir := t.TempDir()
	g, l := socketRig(t, func(_ *fake, c *Config) {
		c.Hook = Hook{Command: []string{"/bin/sh", "-c", `mkfifo "$0" && cat "$0"`, filepath.Join(dir, "gate")}, Timeout: time.Minute}
		c.ActWait = time.Millisecond
	})
	busy, nothing := message.LinkError{Code: protocol.CodeLinkBusy, Retry: 2}, message.LinkError{Code: protocol.CodeNothingToApprove}
	told := func(when string, want message.LinkError) {
		t.Helper()
		p := g.phone(t, 100)
		t.Log(when)
		wantError(t, ask1(t, p.conn, p.m1), want)
	}
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	first := g.phone(t, 100)
	first.challenge(protocol.Approve)
	told("the first phone has a challenge", busy)
	first.finish(first.conn)
	told("the hook runs", busy)
	eventually(t, "the hook waits", func() bool { _, err := os.Stat(filepath.Join(dir, "gate")); return err == nil })
	must(t, os.WriteFile(filepath.Join(dir, "gate"), []byte("open\n"), 0o600))
	if r := l.result(); r.Result != "approved" || !r.Performed {
		t.Errorf("program got %+v", r)
	}
	eventually(t, "the order is gone", func() bool { g.relay.mu.Lock(); defer g.relay.mu.Unlock(); return len(g.relay.orders) == 0 })
	told("afterwards", nothing)
	status := g.phone(t, protocol.ServiceStatus)
	if kind, err := message.Kind(ask1(t, status.conn, status.m1)); err != nil || kind != message.KindM2 {
		t.Errorf("a question about a serial without an order: kind %d, %v", kind, err)
	}
}

func TestOrderGoesBack(t *testing.T) {
	g, l := socketRig(t, nil)
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	p := g.phone(t, 100)
	g.set(func() { g.mu2 = trust.KeyUpdate{}.Marshal() })
	ask1(t, p.conn, p.m1)
	g.set(func() { g.mu2 = nil })
	next := g.phone(t, 100)
	next.challenge(protocol.Approve)
	next.finish(next.conn)
	if r := l.result(); r.Result != "approved" {
		t.Errorf("the order of a phone that got MU ends %+v", r)
	}
}

func TestOrderExpires(t *testing.T) {
	g, l := socketRig(t, func(f *fake, c *Config) { c.OrderWait = 30 * time.Millisecond; f.ttl = 1 })
	l.place(`{"service":100}`)
	if r := l.result(); r.Result != "expired" || r.Code != protocol.CodeExpired {
		t.Errorf("an order that no phone took up: %+v", r)
	}
	g.relay.socket.wait = time.Minute // applies to the next order
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if r := l.result(); r.Result != "expired" {
		t.Errorf("an order that no phone countersigned: %+v", r)
	}
}

func TestOrderOfProgramThatLeft(t *testing.T) {
	g, l := socketRig(t, nil)
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	must(t, l.conn.Close())
	g.untilWaiting(t, 0)
	a := &authorization{progress: progress{isOnce: true}}
	g.relay.place(a)
	x := &exchange{frame: []byte("M1")}
	g.relay.mu.Lock()
	_, _, err := g.relay.challengeLocked(x)
	g.relay.mu.Unlock()
	must(t, err)
	g.relay.step(nil, a, event{kind: abandoned})
	g.relay.step(x, a, event{kind: returned})
	if x.challenge.authorization != a || g.waiting() != 0 {
		t.Error("the next phone gets an order of a program that left")
	}
}

func TestBadOrders(t *testing.T) {
	_, l := socketRig(t, nil)
	for _, line := range []string{
		`{}`, `[]`, `{"service":3}`, `{"service":-1}`, `{"service":100,"amount":5}`, `{"service":100,"currency":"EUR"}`,
		`{"service":100,"amount":1000000000000000,"currency":"EUR"}`, `{"service":100,"amount":1,"currency":"eur"}`,
		`{"service":100,"text":"` + strings.Repeat("x", 45) + `"}`, `{"service":100,"reference":"` + strings.Repeat("x", 65) + `"}`,
		`{"service":100,"colour":"red"}`, `{"service":100} {"service":100}`, `{"services":[100,100]}`, `{"service":100,"text":"a\u0007b"}`,
	} {
		l.place(line)
		if r := l.result(); r.Result != "invalid" || r.Error == "" {
			t.Errorf("%s: %+v, want invalid", line, r)
		}
	}
}

func TestForgedDecisionSettlesOrder(t *testing.T) {
	g, l := socketRig(t, nil)
	g.set(func() { g.mutate = func(d *receipt.Decision) { d.Service = 300 } })
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	if r := l.result(); r.Result != resultRefused || r.Code != protocol.CodePolicy || r.Performed {
		t.Errorf("program got %+v, want refused with code 12", r)
	}
}
