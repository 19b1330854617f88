package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/relay/link"
)

func TestApprovedActs(t *testing.T) {
	f, c := enrolled(t)
	var shown bytes.Buffer
	c.Display = &shown
	c.Orders = Orders{Static: &deviceapi.Order{
		Services: []protocol.Service{200}, Amount: &protocol.Amount{Minor: 1250, Currency: "EUR"}, Text: "2 coffees", Reference: "T-17",
	}}
	g := start(t, f, c)
	p := g.phone(t, 200)
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
		t.Fatalf("phone got %v, want approved", p4.Result)
	}
	if lines := g.hookLog(); len(lines) != 1 {
		t.Fatalf("hook ran %d times, want 1", len(lines))
	}
	var tx protocol.TransactionID
	eventually(t, "the outcome is reported", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for id, performed := range g.outcomes {
			tx = id
			return performed
		}
		return false
	})
	var act map[string]any
	must(t, json.Unmarshal([]byte(g.hookLog()[0]), &act))
	issued, err := time.Parse(time.RFC3339, fmt.Sprint(act["issued_at"]))
	if err != nil || time.Since(issued) > time.Minute {
		t.Errorf("issued_at %v, want now", act["issued_at"])
	}
	delete(act, "issued_at")
	want := map[string]any{
		"transaction": tx.String(), "service": 200.0, "amount": map[string]any{"minor": 1250.0, "currency": "EUR"}, "level": 1.0,
		"factors": []any{"signature"}, "device": g.deviceID().String(), "pairwise": "0700000000000000", "text": "2 coffees", "reference": "T-17",
	}
	if fmt.Sprint(act) != fmt.Sprint(want) {
		t.Errorf("hook got\n%v, want\n%v", act, want)
	}
	if got := shown.String(); got != "approved: service 200, 12.50 EUR\n" {
		t.Errorf("shown %q", got)
	}
	eventually(t, "the journal has all steps", func() bool { return strings.Join(g.steps(t), " ") == "started done settled" })
	s, err := ReadStatus(g.dir)
	must(t, err)
	if !s.Running || !s.Reachable || s.Name != deviceName || s.Last.Result != "approved" || s.Last.Transaction != tx.String() {
		t.Errorf("status %+v %+v", s, s.Last)
	}
}

// steps lists the steps in the journal, line by line.
func (g *rig) steps(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, "journal"))
	must(t, err)
	var steps []string
	for line := range strings.Lines(string(raw)) {
		var r struct{ Step string }
		must(t, json.Unmarshal([]byte(line), &r))
		steps = append(steps, r.Step)
	}
	return steps
}

func TestNoActWithoutApproval(t *testing.T) {
	g := newRig(t)
	p := g.phone(t, 100)
	p.challenge(protocol.Refuse)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultDenied || p4.Reason != protocol.CodeUserRefused {
		t.Errorf("phone got %v %v, want denied, user refused", p4.Result, p4.Reason)
	}
	if len(g.hookLog()) != 0 || len(g.steps(t)) != 0 {
		t.Errorf("acted on a refusal: %v, journal %v", g.hookLog(), g.steps(t))
	}
}

func TestForgedDecisions(t *testing.T) {
	g := newRig(t)
	other := newSigningKey(t)
	euro := &protocol.Amount{Minor: 1, Currency: "EUR"}
	for name, c := range map[string]struct {
		mutate func(*receipt.Decision)
		sign   func(receipt.Decision) []byte
		want   protocol.Code
	}{
		"other key":                         {sign: func(d receipt.Decision) []byte { return signed(t, other, 1, d) }, want: protocol.CodeCertificate},
		"other kid":                         {sign: func(d receipt.Decision) []byte { return signed(t, g.decision, 2, d) }, want: protocol.CodeCertificate},
		"no decision":                       {sign: func(receipt.Decision) []byte { return []byte{0x80} }, want: protocol.CodeFormat},
		"other device":                      {mutate: func(d *receipt.Decision) { d.Device[0]++ }, want: protocol.CodeDevice},
		"other nonce":                       {mutate: func(d *receipt.Decision) { d.U[0]++ }, want: protocol.CodeReplayed},
		"second approver":                   {mutate: func(d *receipt.Decision) { d.SecondStatement = &[32]byte{1} }, want: protocol.CodeReplayed},
		"other service":                     {mutate: func(d *receipt.Decision) { d.Service = 300 }, want: protocol.CodePolicy},
		"reserved":                          {mutate: func(d *receipt.Decision) { d.Service = 3 }, want: protocol.CodePolicy},
		"lower level":                       {mutate: func(d *receipt.Decision) { d.Level = 0 }, want: protocol.CodeLevel},
		"over":                              {mutate: func(d *receipt.Decision) { d.Lifetime = 0 }, want: protocol.CodeExpired},
		"pending":                           {mutate: func(d *receipt.Decision) { d.Result = protocol.ResultPending }, want: protocol.CodePending},
		"denied":                            {mutate: func(d *receipt.Decision) { d.Result = protocol.ResultDenied }, want: protocol.CodeRefused},
		"good, last of all, with an amount": {mutate: func(d *receipt.Decision) { d.Amount = euro }},
	} {
		g.set(func() { g.mutate, g.sign = c.mutate, c.sign })
		before := len(g.hookLog())
		p := g.phone(t, 100)
		p.challenge(protocol.Approve)
		if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
			t.Errorf("%s: M4 did not reach the phone as it was", name)
		}
		acts := len(g.hookLog()) - before
		if c.want == 0 {
			if acts != 1 {
				t.Errorf("%s: %d acts, want 1", name, acts)
			}
			continue
		}
		s, err := ReadStatus(g.dir)
		must(t, err)
		if acts != 0 || s.Last == nil || s.Last.Code != c.want {
			t.Errorf("%s: %d acts, last %v; want none and code %d", name, acts, s.Last, c.want)
		}
	}
}

func signed(t *testing.T, key signingKey, epoch uint64, d receipt.Decision) []byte {
	t.Helper()
	raw, err := receipt.Sign(context.Background(), key, epoch, d)
	must(t, err)
	return raw
}

func TestOrderIsHeld(t *testing.T) {
	two := &protocol.Amount{Minor: 200, Currency: "EUR"}
	one := &protocol.Amount{Minor: 100, Currency: "EUR"}
	for name, c := range map[string]struct {
		ordered, decided *protocol.Amount
		want             int
	}{
		"same":         {two, two, 1},
		"less":         {two, one, 0},
		"none decided": {two, nil, 0},
		"none ordered": {nil, one, 0},
		"neither":      {nil, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f, conf := enrolled(t)
			conf.Orders = Orders{Static: &deviceapi.Order{Services: []protocol.Service{200}, Amount: c.ordered}}
			f.mutate = func(d *receipt.Decision) { d.Amount = c.decided }
			g := start(t, f, conf)
			p := g.phone(t, 200)
			p.challenge(protocol.Approve)
			p.finish(p.conn)
			if got := len(g.hookLog()); got != c.want {
				t.Errorf("ordered %v, decided %v: %d acts, want %d", c.ordered, c.decided, got, c.want)
			}
		})
	}
}

func TestReplaysActOnce(t *testing.T) {
	f, c := enrolled(t)
	c.MaxLinks = 200
	registry := prometheus.NewRegistry()
	c.Metrics = NewMetrics(registry)
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	var all sync.WaitGroup
	answers := make([][]byte, 100)
	for i := range answers {
		conn := p.conn
		if i > 0 {
			conn = g.dial(t)
		}
		all.Go(func() {
			if i%2 == 0 { // half of them know their M1
				if err := conn.Send(p.m1); err != nil {
					t.Error(err)
				}
				if _, err := conn.Receive(); err != nil {
					t.Error(err)
				}
			}
			if err := conn.Send(p.m3); err != nil {
				t.Error(err)
			}
			var err error
			if answers[i], err = conn.Receive(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, m4 := range answers {
		if p4 := p.open(m4); p4.Result != protocol.ResultApproved {
			t.Errorf("a repeat was answered %v", p4.Result)
		}
	}
	if got := len(g.hookLog()); got != 1 {
		t.Errorf("hook ran %d times for 100 equal M3, want 1", got)
	}
	if got := g.count("/v1/apply"); got != 1 {
		t.Errorf("one M1 was applied %d times", got)
	}
	if got := g.count("/v1/countersign"); got != 100 {
		t.Errorf("%d M3 were forwarded, want each of 100", got)
	}
	if done, repeated := acts(t, registry, "done"), acts(t, registry, "repeated"); done != 1 || repeated != 99 {
		t.Errorf("metric counts %v acts and %v repeats, want 1 and 99", done, repeated)
	}
}

// acts returns the value of a counter.
func acts(t *testing.T, registry *prometheus.Registry, result string) float64 {
	t.Helper()
	families, err := registry.Gather()
	must(t, err)
	for _, family := range families {
		if family.GetName() != "countersign_relay_acts_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			if m.GetLabel()[0].GetValue() == result {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestReconnect(t *testing.T) {
	g := newRig(t)
	p := g.phone(t, 100)
	m2 := p.challenge(protocol.Approve)
	must(t, p.conn.Close())
	again := g.dial(t)
	if got := ask1(t, again, p.m1); !bytes.Equal(got, m2) {
		t.Errorf("the same M1 got %x, want the M2 of the first time", got)
	}
	newer := g.phone(t, 100)
	newer.challenge(protocol.Approve)
	if p4 := p.finish(again); p4.Result != protocol.ResultApproved {
		t.Errorf("M3 after M1 on a new link: %v", p4.Result)
	}
	if p4 := newer.finish(g.dial(t)); p4.Result != protocol.ResultApproved {
		t.Errorf("M3 alone on a new link, of the newest session: %v", p4.Result)
	}
	if p4 := p.finish(g.dial(t)); p4.Result != protocol.ResultApproved {
		t.Errorf("M3 again on a new link, of an older session: %v", p4.Result)
	}
	if got := len(g.hookLog()); got != 2 {
		t.Errorf("%d acts, want 2", got)
	}
}

func TestBadMessages(t *testing.T) {
	g := newRig(t)
	for name, c := range map[string]struct {
		raw    []byte
		want   protocol.Code
		closes bool
	}{
		"M3 without M1":  {frame(20, append([]byte{0x31, 0}, make([]byte, 18)...)...), protocol.CodeExpired, false},
		"version 2":      {frame(2, 0x12, 0), protocol.CodeVersion, false},
		"no kind":        {frame(2, 0x71, 0), protocol.CodeFormat, false},
		"an M2":          {frame(2, 0x21, 0), protocol.CodeFormat, false},
		"an ME":          {frame(3, 0xE1, 4, 0), protocol.CodeFormat, false},
		"M1 of one byte": {frame(1, 0x11), protocol.CodeFormat, false},
		"empty":          {frame(0), protocol.CodeFormat, true},
		"too long":       {frame(2049), protocol.CodeFormat, true},
		"far too long":   {frame(65535), protocol.CodeFormat, true},
	} {
		raw, err := net.Dial("tcp", strings.TrimPrefix(g.relay.Links()[0], "tcp:"))
		must(t, err)
		_, err = raw.Write(c.raw)
		must(t, err)
		answer, err := message.ReadFrame(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantError(t, answer, message.LinkError{Code: c.want})
		if c.closes {
			if _, err := raw.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s: the link stays open", name)
			}
		} else {
			_, err = raw.Write(frame(1, 0x12))
			must(t, err)
			if _, err := message.ReadFrame(raw); err != nil {
				t.Errorf("%s: the link is closed: %v", name, err)
			}
		}
		must(t, raw.Close())
	}
}

func TestKeyUpdatePasses(t *testing.T) {
	g := newRig(t)
	mu := trust.KeyUpdate{Certs: g.keyCerts}.Marshal()
	g.set(func() { g.mu2 = mu })
	p := g.phone(t, 100)
	if got := ask1(t, p.conn, p.m1); !bytes.Equal(got, mu) {
		t.Errorf("M1 got %x, want the MU as it came", got)
	}
	wantError(t, ask1(t, p.conn, []byte{0x31, 0}), message.LinkError{Code: protocol.CodeExpired})
	g.set(func() { g.mu2 = nil })
	next := g.phone(t, 100)
	next.conn = p.conn
	next.challenge(protocol.Approve)
	if p4 := next.finish(p.conn); p4.Result != protocol.ResultApproved {
		t.Errorf("a new M1 after the MU: %v", p4.Result)
	}
}

func TestAnswersBecomeLinkErrors(t *testing.T) {
	f, c := enrolled(t)
	c.Timeout = 200 * time.Millisecond
	g := start(t, f, c)
	problem := func(err error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { refuse(w, err) }
	}
	status := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	busy := protocol.Retry{Code: protocol.CodeBusy, After: 3 * time.Second}
	down := protocol.Retry{Code: protocol.CodeHSM, After: 400 * time.Second}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    message.LinkError
	}{
		"format":         {problem(protocol.CodeFormat), message.LinkError{Code: 1}},
		"version":        {problem(protocol.CodeVersion), message.LinkError{Code: 2}},
		"dead handle":    {problem(protocol.CodeExpired), message.LinkError{Code: 8}},
		"device":         {problem(protocol.CodeDevice), message.LinkError{Code: 15}},
		"busy":           {problem(busy), message.LinkError{Code: 16, Retry: 3}},
		"HSM":            {problem(down), message.LinkError{Code: 17, Retry: 255}},
		"internal":       {status(500), message.LinkError{Code: 32}},
		"no such route":  {status(404), message.LinkError{Code: 32}},
		"proxy":          {status(502), message.LinkError{Code: 32}},
		"proxy timeout":  {status(504), message.LinkError{Code: 33}},
		"forbidden":      {status(403), message.LinkError{Code: 15}},
		"gone":           {status(410), message.LinkError{Code: 8}},
		"unavailable":    {status(503), message.LinkError{Code: 17}},
		"too many":       {status(429), message.LinkError{Code: 16}},
		"redirect":       {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v1/trust", http.StatusFound) }, message.LinkError{Code: 32}},
		"not an answer":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{1}) }, message.LinkError{Code: 32}},
		"no answer":      {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, message.LinkError{Code: 33}},
		"answer cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, message.LinkError{Code: 32}},
	} {
		t.Run(name, func(t *testing.T) {
			p := g.phone(t, 100)
			g.set(func() { g.fail["/v1/apply"] = c.handler })
			wantError(t, ask1(t, p.conn, p.m1), c.want)
			g.set(func() { delete(g.fail, "/v1/apply") })
			p.challenge(protocol.Approve) // the same M1: it was not applied
			g.set(func() { g.fail["/v1/countersign"] = c.handler })
			wantError(t, ask1(t, p.conn, p.m3), c.want)
			g.set(func() { delete(g.fail, "/v1/countersign") })
			if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
				t.Errorf("the same M3 afterwards: %v", p4.Result)
			}
		})
	}
}

func TestApplianceComesBack(t *testing.T) {
	g := newRig(t)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	addr := g.server.Listener.Addr().String()
	g.fake.stop()
	wantError(t, ask1(t, p.conn, p.m3), message.LinkError{Code: protocol.CodeServerUnreachable})
	if s, err := ReadStatus(g.dir); err != nil || s.Reachable {
		t.Errorf("status says reachable, %v", err)
	}
	g.start(addr)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved || len(g.hookLog()) != 1 {
		t.Errorf("after the restart: %v, %d acts", p4.Result, len(g.hookLog()))
	}
}

func TestTooManyLinks(t *testing.T) {
	f, c := enrolled(t)
	c.MaxLinks = 2
	g := start(t, f, c)
	first := g.dial(t)
	for _, conn := range []*link.Conn{first, g.dial(t)} {
		ask1(t, conn, []byte{0x12}) // once answered, it is counted
	}
	third := g.dial(t)
	answer, err := third.Receive()
	must(t, err)
	wantError(t, answer, message.LinkError{Code: protocol.CodeLinkBusy, Retry: 2})
	wantClosed(t, third)
	must(t, first.Close())
	eventually(t, "a place is free", func() bool {
		conn := g.dial(t)
		must(t, conn.Send([]byte{0x12}))
		answer, err := conn.Receive()
		return err == nil && answer[1] == byte(protocol.CodeVersion)
	})
}

func TestIdleLinkIsClosed(t *testing.T) {
	f, c := enrolled(t)
	c.Idle = 20 * time.Millisecond
	g := start(t, f, c)
	raw, err := net.Dial("tcp", strings.TrimPrefix(g.relay.Links()[0], "tcp:"))
	must(t, err)
	_, err = raw.Write([]byte{0}) // half a length
	must(t, err)
	if _, err := raw.Read(make([]byte, 1)); err == nil {
		t.Error("a phone that sends half a length gets an answer")
	}
	must(t, raw.Close())
}

func TestChallengeEnds(t *testing.T) {
	f, c := enrolled(t)
	f.ttl = 1
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	live := g.challengeOf(p.m3)
	eventually(t, "the ttl ends", func() bool { return !live.isLive() })
	wantError(t, ask1(t, p.conn, p.m3), message.LinkError{Code: protocol.CodeExpired})
	if got := g.count("/v1/countersign"); got != 0 {
		t.Errorf("%d M3 forwarded after the ttl", got)
	}
}

func TestStopIsQuick(t *testing.T) {
	f, c := enrolled(t)
	g := start(t, f, c)
	idle, waiting := g.dial(t), g.phone(t, 100)
	ask1(t, idle, []byte{0x12})
	release := make(chan struct{})
	g.set(func() {
		g.fail["/v1/apply"] = func(_ http.ResponseWriter, r *http.Request) {
			close(release)
			<-r.Context().Done()
		}
	})
	must(t, waiting.conn.Send(waiting.m1))
	<-release
	begun := time.Now()
	must(t, g.stop())
	if took := time.Since(begun); took > time.Second {
		t.Errorf("stopping took %v, want less than a second", took)
	}
	wantClosed(t, idle)
	if _, err := New(c); err != nil {
		t.Errorf("the state directory is not free: %v", err)
	}
}

func TestJournalFailureStops(t *testing.T) {
	f, c := enrolled(t)
	r, err := New(c)
	must(t, err)
	g := &rig{fake: f, dir: c.StateDir, relay: r}
	done := make(chan error, 1)
	go func() { done <- r.Serve(t.Context()) }()
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	must(t, r.journal.Close())
	must(t, p.conn.Send(p.m3))
	if err := <-done; err == nil {
		t.Error("the relay runs without its journal")
	}
	if got := g.hookLog(); len(got) != 0 {
		t.Errorf("acted without a journal: %v", got)
	}
}

func TestRelaysExclude(t *testing.T) {
	f, c := enrolled(t)
	start(t, f, c)
	if _, err := New(c); err == nil {
		t.Error("two relays use one state directory")
	}
}
