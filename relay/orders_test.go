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

// till is a local program on the order socket.
type till struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

func newTill(t *testing.T, c Config) *till {
	t.Helper()
	conn, err := net.Dial("unix", c.Orders.Socket)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	return &till{t, conn, bufio.NewScanner(conn)}
}

func (l *till) place(line string) {
	l.t.Helper()
	_, err := l.conn.Write([]byte(line + "\n"))
	must(l.t, err)
}

func (l *till) result() (r resultJSON) {
	l.t.Helper()
	if !l.in.Scan() {
		l.t.Fatalf("no result: %v", l.in.Err())
	}
	must(l.t, json.Unmarshal(l.in.Bytes(), &r))
	return r
}

func deskRig(t *testing.T, change func(*fake, *Config)) (*rig, *till) {
	t.Helper()
	f, c := enrolled(t)
	c.Orders = Orders{Socket: filepath.Join(c.StateDir, "orders")}
	if change != nil {
		change(f, &c)
	}
	g := start(t, f, c)
	return g, newTill(t, c)
}

func (g *rig) waiting() int {
	d := g.relay.orders.(*desk)
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting)
}

func (g *rig) untilWaiting(t *testing.T, n int) {
	t.Helper()
	eventually(t, "orders wait", func() bool { return g.waiting() == n })
}

func TestOrderFromSocket(t *testing.T) {
	g, l := deskRig(t, nil)
	info, err := os.Stat(filepath.Join(g.dir, "orders"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, want 0600", info.Mode())
	}
	p := g.phone(t, 200)
	wantError(t, ask1(t, p.conn, p.m1), message.LinkError{Code: protocol.CodeLinkBusy, Retry: 2})
	l.place(`{"service":200,"amount":1250,"currency":"EUR","text":"2 coffees","reference":"T-17"}`)
	g.untilWaiting(t, 1)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	r := l.result()
	if r.Result != "approved" || !r.Performed || r.Service != 200 || *r.Amount != (ActAmount{1250, "EUR"}) || r.Reference != "T-17" || r.Transaction == "" {
		t.Errorf("till was told %+v", r)
	}
	if lines := g.hookLog(); len(lines) != 1 || !strings.Contains(lines[0], `"reference":"T-17"`) {
		t.Errorf("hook was told %v", lines)
	}
	next := g.phone(t, 200)
	wantError(t, ask1(t, next.conn, next.m1), message.LinkError{Code: protocol.CodeLinkBusy, Retry: 2})

	l.place(`{"services":[100,200]}`)
	g.untilWaiting(t, 1)
	next.challenge(protocol.Refuse)
	next.finish(next.conn)
	if r := l.result(); r.Result != "denied" || r.Performed || r.Code != protocol.CodeRefused {
		t.Errorf("till was told %+v, want denied", r)
	}
}

func TestOrderGoesBack(t *testing.T) {
	g, l := deskRig(t, nil)
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
	g, l := deskRig(t, func(f *fake, c *Config) { c.OrderWait = 30 * time.Millisecond; f.ttl = 1 })
	l.place(`{"service":100}`)
	if r := l.result(); r.Result != "expired" || r.Code != protocol.CodeExpired {
		t.Errorf("an order that nobody took up: %+v", r)
	}
	g.relay.orders.(*desk).wait = time.Minute // read when the next order is placed
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if r := l.result(); r.Result != "expired" {
		t.Errorf("an order that nobody countersigned: %+v", r)
	}
}

func TestOrderOfTillThatLeft(t *testing.T) {
	g, l := deskRig(t, nil)
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	must(t, l.conn.Close())
	g.untilWaiting(t, 0)
	o := &order{settled: make(chan Settlement, 1)}
	d := g.relay.orders.(*desk)
	d.insert(0, o)
	taken, err := d.take()
	must(t, err)
	d.abandon(o)
	taken.putBack()
	if g.waiting() != 0 {
		t.Error("an order that nobody waits for is given to the next phone")
	}
}

func TestBadOrders(t *testing.T) {
	_, l := deskRig(t, nil)
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
	g, l := deskRig(t, nil)
	g.set(func() { g.mutate = func(d *receipt.Decision) { d.Service = 300 } })
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	if r := l.result(); r.Result != ResultRefused || r.Code != protocol.CodePolicy || r.Performed {
		t.Errorf("till was told %+v, want refused with code 12", r)
	}
}
