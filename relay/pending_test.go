package relay

import (
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// applied returns the last apply.
func (g *rig) applied(t *testing.T) deviceapi.ApplyRequest {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	bodies := g.bodies["/v1/apply"]
	request, err := deviceapi.ParseApplyRequest(bodies[len(bodies)-1])
	must(t, err)
	return request
}

// firstOf starts a rig at level 4 and countersigns once.
func firstOf(t *testing.T, service protocol.Service, change func(*fake, *Config)) (*rig, *phoneClient) {
	t.Helper()
	f, c := enrolled(t)
	f.isFour = true
	if change != nil {
		change(f, &c)
	}
	g := start(t, f, c)
	return g, g.first(t, service)
}

func (g *rig) first(t *testing.T, service protocol.Service) *phoneClient {
	t.Helper()
	p := g.phone(t, service)
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultPending || p4.Reason != protocol.CodePending {
		t.Fatalf("first phone got %v %v, want pending", p4.Result, p4.Reason)
	}
	return p
}

// approver returns a phone with a challenge for the second approval.
func (g *rig) approver(t *testing.T, v protocol.Verdict) *phoneClient {
	t.Helper()
	p := g.phone(t, protocol.ServiceCoApproval)
	p.challenge(v)
	return p
}

func (g *rig) wantLast(t *testing.T, result string, code protocol.Code) {
	t.Helper()
	s, err := ReadStatus(g.dir)
	must(t, err)
	if s.Last == nil || s.Last.Result != result || s.Last.Code != code {
		t.Errorf("status says %v, want %s with code %d", s.Last, result, code)
	}
}

func (g *rig) wantOutcomes(t *testing.T, want ...bool) {
	t.Helper()
	eventually(t, "the outcomes are reported", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.outcomes) == len(want)
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, performed := range g.outcomes {
		i := slices.Index(want, performed)
		if i < 0 {
			t.Fatalf("outcomes %v", g.outcomes)
		}
		want = slices.Delete(want, i, i+1)
	}
}

func TestSecondApprover(t *testing.T) {
	for _, strict := range []bool{false, true} {
		g, first := firstOf(t, 200, func(_ *fake, c *Config) { c.Strict = strict })
		if r := g.applied(t); !slices.Equal(r.Order.Services, []protocol.Service{100, 200, 0, 2}) || r.Handle != nil || r.Strict != strict {
			t.Errorf("first apply: services %v, handle %q, strict %v", r.Order.Services, r.Handle, r.Strict)
		}
		if len(g.hookLog()) != 0 || len(g.steps(t)) != 0 {
			t.Errorf("pending: acts %v, journal %v, want none", g.hookLog(), g.steps(t))
		}
		g.wantLast(t, "pending", protocol.CodePending)
		second := g.approver(t, protocol.Approve)
		if r := g.applied(t); !slices.Equal(r.Order.Services, []protocol.Service{100, 200, 0, 2, 3}) || g.waiting0(r.Handle) == nil {
			t.Errorf("second apply: services %v, handle %q", r.Order.Services, r.Handle)
		}
		for range 3 {
			if p4 := second.finish(second.conn); p4.Result != protocol.ResultApproved {
				t.Fatalf("second phone got %v", p4.Result)
			}
		}
		if lines := g.hookLog(); len(lines) != 1 || !strings.Contains(lines[0], `"service":200`) || !strings.Contains(lines[0], `"second-approver"`) {
			t.Errorf("hook got %v, want one act for service 200", lines)
		}
		g.wantOutcomes(t, true)
		if p4 := first.finish(first.conn); p4.Result != protocol.ResultPending {
			t.Errorf("a repeat of the first got %v", p4.Result)
		}
		g.phone(t, 200).challenge(protocol.Approve)
		if r := g.applied(t); r.Handle != nil {
			t.Error("the handle is passed after the final decision")
		}
	}
}

func (g *rig) waiting0(handle []byte) *approval {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fake.waiting[string(handle)]
}

func TestSecondApproverOfOrder(t *testing.T) {
	g, l := socketRig(t, func(f *fake, _ *Config) { f.isFour = true })
	l.place(`{"service":200,"amount":1250,"currency":"EUR","text":"Safe","reference":"T-17"}`)
	g.untilWaiting(t, 1)
	g.first(t, 200)
	if r := l.result(); r.Result != "pending" || r.Code != protocol.CodePending || r.Performed || r.Transaction == "" {
		t.Errorf("program got %+v, want pending", r)
	}
	other := newProgram(t, g.relay.config)
	other.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	stranger := g.approver(t, protocol.Refuse)
	if p4 := stranger.finish(stranger.conn); p4.Result != protocol.ResultDenied {
		t.Errorf("the phone that refused got %v", p4.Result)
	}
	second := g.approver(t, protocol.Approve)
	if r := g.applied(t); *r.Order.Amount != (protocol.Amount{Minor: 1250, Currency: "EUR"}) || r.Order.Text != "Safe" {
		t.Errorf("the second approver's order is %+v, want the pending one", r.Order)
	}
	second.finish(second.conn)
	if r := l.result(); r.Result != "approved" || !r.Performed || r.Service != 200 || r.Reference != "T-17" {
		t.Errorf("program got %+v, want approved", r)
	}
	g.set(func() { g.isFour = false })
	next := g.phone(t, 100)
	next.challenge(protocol.Approve)
	next.finish(next.conn)
	if r := other.result(); r.Result != "approved" || r.Service != 100 {
		t.Errorf("the next program got %+v", r)
	}
}

func TestSecondApprovalTooLate(t *testing.T) {
	g, l := socketRig(t, func(f *fake, c *Config) { f.isFour = true; c.ApprovalWait = time.Minute })
	l.place(`{"service":200}`)
	g.untilWaiting(t, 1)
	g.first(t, 200)
	l.result()
	second := g.approver(t, protocol.Approve)
	g.endWait()
	if r := l.result(); r.Result != "expired" || r.Code != protocol.CodeExpired {
		t.Errorf("program got %+v, want expired", r)
	}
	second.finish(second.conn)
	if len(g.hookLog()) != 0 {
		t.Error("acted on an order that is over")
	}
	g.wantOutcomes(t, false)
	p := g.phone(t, 200)
	wantError(t, ask1(t, p.conn, p.m1), message.LinkError{Code: protocol.CodeNothingToApprove})
	if r := g.applied(t); r.Handle != nil || !slices.Equal(r.Order.Services, []protocol.Service{0, 2}) {
		t.Errorf("afterwards: services %v, handle %q", r.Order.Services, r.Handle)
	}
}

func TestPendingExpires(t *testing.T) {
	g, l := socketRig(t, func(f *fake, c *Config) { f.isFour = true; c.ApprovalWait = 20 * time.Millisecond })
	l.place(`{"service":200}`)
	g.untilWaiting(t, 1)
	g.first(t, 200)
	for _, want := range []string{"pending", "expired"} {
		if r := l.result(); r.Result != want {
			t.Errorf("program got %+v, want %s", r, want)
		}
	}
}

func TestOrderIsActedOnOnce(t *testing.T) {
	g, l := socketRig(t, func(f *fake, _ *Config) { f.isFour = true })
	l.place(`{"service":200}`)
	g.untilWaiting(t, 1)
	g.first(t, 200)
	l.result()
	second := g.approver(t, protocol.Approve)
	g.set(func() { g.isFour = false })
	another := g.phone(t, 200)
	another.challenge(protocol.Approve)
	another.finish(another.conn)
	if r := l.result(); r.Result != "approved" || !r.Performed {
		t.Errorf("program got %+v", r)
	}
	second.finish(second.conn)
	if got := len(g.hookLog()); got != 1 {
		t.Errorf("%d acts for one order", got)
	}
	g.wantOutcomes(t, true, false)
}

func TestNewestPending(t *testing.T) {
	g, first := firstOf(t, 200, nil)
	old := g.approver(t, protocol.Approve)
	g.first(t, 100)
	first.finish(first.conn)
	young := g.approver(t, protocol.Approve)
	if s := g.waiting0(g.applied(t).Handle).decision.Service; s != 100 {
		t.Errorf("apply names the pending approval of service %v, want the newest", s)
	}
	young.finish(young.conn)
	old.finish(old.conn)
	if lines := g.hookLog(); len(lines) != 2 || !strings.Contains(lines[0], `"service":100`) || !strings.Contains(lines[1], `"service":200`) {
		t.Errorf("acts %v, want 100 and then 200", lines)
	}
}

func TestForgedFinalDecisions(t *testing.T) {
	g, _ := firstOf(t, 200, nil)
	for name, mutate := range map[string]func(*receipt.Decision){
		"u of the first challenge": func(d *receipt.Decision) { d.U = g.waitingU() },
		"another first statement":  func(d *receipt.Decision) { d.Statement[0]++ },
		"another transaction":      func(d *receipt.Decision) { d.Transaction[0]++ },
		"pending and final":        func(d *receipt.Decision) { d.Result = protocol.ResultPending },
	} {
		g.set(func() { g.mutate = mutate })
		p := g.approver(t, protocol.Approve)
		p.finish(p.conn)
		if len(g.hookLog()) != 0 || len(g.steps(t)) != 0 {
			t.Fatalf("%s: acts %v, journal %v", name, g.hookLog(), g.steps(t))
		}
		g.wantLast(t, resultRefused, protocol.CodeReplayed)
	}
	g.set(func() { g.mutate = func(d *receipt.Decision) { d.Result = protocol.ResultDenied } })
	p := g.approver(t, protocol.Approve)
	p.finish(p.conn)
	g.wantLast(t, "denied", protocol.CodeRefused)
	if g.isOffered() || len(g.hookLog()) != 0 {
		t.Error("a signed denial leaves the approval pending, or was acted on")
	}
}

// waitingU returns u of the first challenge. The caller holds the fake's mu.
func (g *rig) waitingU() (u protocol.Nonce) {
	for _, a := range g.fake.waiting {
		u = a.opened.u
	}
	return u
}

func TestOrdinaryWhilePending(t *testing.T) {
	g, _ := firstOf(t, 200, nil)
	g.set(func() { g.isFour = false })
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved || len(g.hookLog()) != 1 {
		t.Errorf("an ordinary phone: %v, %d acts", p4.Result, len(g.hookLog()))
	}
	if !g.isOffered() {
		t.Error("an ordinary decision ends what is pending")
	}
}

func TestPendingWithoutHandle(t *testing.T) {
	g, _ := firstOf(t, 200, func(f *fake, _ *Config) {
		f.answer = func(a *deviceapi.CountersignResponse) { a.NextHandle = nil }
	})
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if r := g.applied(t); r.Handle != nil {
		t.Errorf("handle %q, want none", r.Handle)
	}
}

func TestTwoOrdersPending(t *testing.T) {
	g, a := socketRig(t, func(f *fake, _ *Config) { f.isFour = true })
	b := newProgram(t, g.relay.config)
	phones := map[*program]*phoneClient{}
	for l, line := range map[*program]string{a: `{"service":100}`, b: `{"service":200}`} {
		l.place(line)
		g.untilWaiting(t, 1)
		service := map[*program]protocol.Service{a: 100, b: 200}[l]
		phones[l] = g.phone(t, service)
		phones[l].challenge(protocol.Approve)
	}
	for _, l := range []*program{a, b} {
		phones[l].finish(phones[l].conn)
		if r := l.result(); r.Result != "pending" {
			t.Fatalf("program got %+v, want pending", r)
		}
	}
	for _, l := range []*program{b, a} {
		phones[a].finish(phones[a].conn) // a repeat is not newer; it is offered once the newer one is done
		second := g.approver(t, protocol.Approve)
		second.finish(second.conn)
		want := map[*program]protocol.Service{a: 100, b: 200}[l]
		if r := l.result(); r.Result != "approved" || !r.Performed || r.Service != want {
			t.Errorf("program got %+v, want approved, service %v", r, want)
		}
	}
}

func TestPendingOrderOfProgramThatLeft(t *testing.T) {
	g, l := socketRig(t, func(f *fake, _ *Config) { f.isFour = true })
	l.place(`{"service":200}`)
	g.untilWaiting(t, 1)
	g.first(t, 200)
	l.result()
	if !g.isOffered() {
		t.Fatal("nothing is pending")
	}
	must(t, l.conn.Close())
	eventually(t, "its approval is no longer offered", func() bool { return !g.isOffered() })
}
