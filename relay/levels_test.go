package relay

import (
	"errors"
	"slices"
	"testing"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

func TestStatusAndDryRun(t *testing.T) {
	for _, service := range []protocol.Service{protocol.ServiceDryRun, protocol.ServiceStatus} {
		g, l := socketRig(t, nil)
		ask := func() {
			p := g.phone(t, service)
			p.challenge(protocol.Approve)
			if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
				t.Errorf("service %v got %v", service, p4.Result)
			}
			g.expire(p.m3) // does not end the order, which the phone has returned
		}
		ask() // without an order
		l.place(`{"service":200}`)
		g.untilWaiting(t, 1)
		ask()
		if got := g.waiting(); got != 1 {
			t.Errorf("service %v: %d orders wait afterwards, want the 1 it took", service, got)
		}
		if len(g.hookLog()) != 0 || len(g.steps(t)) != 0 {
			t.Errorf("service %v: acts %v, journal %v", service, g.hookLog(), g.steps(t))
		}
		p := g.phone(t, 200)
		p.challenge(protocol.Approve)
		p.finish(p.conn)
		if r := l.result(); r.Result != "approved" || !r.Performed {
			t.Errorf("program got %+v", r)
		}
	}
}

func TestApprovedWithoutDecision(t *testing.T) {
	g := newRig(t)
	g.set(func() { g.answer = func(a *deviceapi.CountersignResponse) { a.Decision = nil } })
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
		t.Errorf("M4 did not reach the phone: %v", p4.Result)
	}
	if len(g.hookLog()) != 0 || len(g.steps(t)) != 0 {
		t.Errorf("acted without a decision: %v, %v", g.hookLog(), g.steps(t))
	}
}

func TestStrict(t *testing.T) {
	f, c := enrolled(t)
	c.Strict = true
	g := start(t, f, c)
	for _, tc := range []struct {
		name   string
		mutate func(*receipt.Decision)
		want   protocol.Code
	}{
		{"no evidence", func(d *receipt.Decision) { d.Evidence = nil }, protocol.CodeFormat},
		{"forged countersignature", func(d *receipt.Decision) { d.Evidence[0].Signature[9]++ }, protocol.CodeSignature},
		{"another statement", func(d *receipt.Decision) { d.Statement[0]++ }, protocol.CodePolicy},
		{"no certificate", func(d *receipt.Decision) { d.Evidence[0].ClientCert = g.keyCerts[0] }, protocol.CodeFormat},
		{"minted with another key", func(*receipt.Decision) { g.clientCA = newSigningKey(t) }, protocol.CodeCertificate},
	} {
		g.set(func() { g.mutate = tc.mutate })
		for range 2 { // the last change takes effect the second time
			p := g.phone(t, 100)
			p.challenge(protocol.Approve)
			p.finish(p.conn)
			if tc.want != protocol.CodeCertificate {
				break
			}
		}
		g.wantLast(t, resultRefused, tc.want)
	}
	if got := len(g.hookLog()); got != 1 { // the first of the last case, by the right key
		t.Errorf("%d acts, want 1", got)
	}
}

// TestStrictUV: a strict device at level 3 acts only on a countersignature by the UV key that the
// client's certificate names.
func TestStrictUV(t *testing.T) {
	f, c := enrolled(t)
	c.Strict, c.Floor = true, 3
	g := start(t, f, c)
	g.set(func() { g.isThree = true })
	acts := 0
	for _, tc := range []struct {
		name   string
		mutate func(*phoneClient, *receipt.Decision)
		want   protocol.Code // 0: it acts
	}{
		{"the certificate names the UV key", func(*phoneClient, *receipt.Decision) {}, 0},
		{"the certificate lacks the UV key", func(p *phoneClient, d *receipt.Decision) {
			d.Evidence[0].ClientCert = g.clientCert(trust.ClientCert{Client: p.id(), SigningKey: p.key.public(t)})
		}, protocol.CodeSignature},
		{"the certificate names another UV key", func(p *phoneClient, d *receipt.Decision) {
			other := newSigningKey(t).public(t)
			d.Evidence[0].ClientCert = g.clientCert(trust.ClientCert{Client: p.id(), SigningKey: p.key.public(t), UVKey: &other})
		}, protocol.CodeSignature},
		{"the certificate lacks the UV key, and the signing key signed in its place", func(p *phoneClient, d *receipt.Decision) {
			d.Evidence[0].ClientCert = g.clientCert(trust.ClientCert{Client: p.id(), SigningKey: p.key.public(t)})
			sig, err := message.Countersign(t.Context(), p.key, d.Evidence[0].Statement, d.Evidence[0].Approval)
			must(t, err)
			d.Evidence[0].Signature = sig
		}, protocol.CodeSignature},
		{"the signing key signed, and the appliance says the UV key did", func(p *phoneClient, d *receipt.Decision) {
			approval := d.Evidence[0].Approval
			sig, err := message.Countersign(t.Context(), p.key, d.Evidence[0].Statement, approval)
			must(t, err)
			d.Evidence[0].Signature = sig
		}, protocol.CodeSignature},
		{"the level is lower than the device's", func(_ *phoneClient, d *receipt.Decision) { d.Level = 2 }, protocol.CodeLevel},
		{"the level is higher than the statement's", func(_ *phoneClient, d *receipt.Decision) { d.Level = 4 }, protocol.CodePolicy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := g.phone(t, 100)
			uv := newSigningKey(t)
			p.uv = &uv
			g.set(func() {
				g.uvKeys[p.id()] = uv.public(t)
				g.mutate = func(d *receipt.Decision) { tc.mutate(p, d) }
			})
			p.challenge(protocol.Approve)
			p.finish(p.conn)
			if tc.want == 0 {
				acts++
			} else {
				g.wantLast(t, resultRefused, tc.want)
			}
			if got := len(g.hookLog()); got != acts {
				t.Errorf("%d acts, want %d", got, acts)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	g := newRig(t)
	g.set(func() { g.retries = 2 })
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	for attempt, want := range []protocol.Result{protocol.ResultRetry, protocol.ResultRetry, protocol.ResultApproved} {
		p.m3 = p.channel.SealM3(uint8(attempt), p.p3)
		if p4 := p.finish(p.conn); p4.Result != want {
			t.Errorf("attempt %d got %v, want %v", attempt, p4.Result, want)
		}
	}
	if got := len(g.hookLog()); got != 1 {
		t.Errorf("%d acts, want 1", got)
	}
	g.set(func() { g.retries = 1 })
	p = g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	g.expire(p.m3)
	wantError(t, ask1(t, p.conn, p.channel.SealM3(1, p.p3)), message.LinkError{Code: protocol.CodeExpired})
}

func TestRetryLeavesOrderOpen(t *testing.T) {
	g, l := socketRig(t, func(f *fake, _ *Config) { f.retries = 1 })
	l.place(`{"service":100}`)
	g.untilWaiting(t, 1)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	p.m3 = p.channel.SealM3(1, p.p3)
	p.finish(p.conn)
	if r := l.result(); r.Result != "approved" || !r.Performed {
		t.Errorf("program got %+v first of all", r)
	}
}

func TestJammedATM(t *testing.T) {
	f, c := enrolled(t)
	f.limit = 1
	c.Hook.Command = []string{"/bin/sh", "-c", `[ -e "$0" ] && cat >> "$0"`, c.Hook.Command[3]}
	g := start(t, f, c)
	told := func() message.P4 {
		p := g.phone(t, 100)
		p.challenge(protocol.Approve)
		return p.finish(p.conn)
	}
	if p4 := told(); p4.Result != protocol.ResultApproved {
		t.Fatalf("first: %v", p4.Result)
	}
	g.wantOutcomes(t, false)
	writeEmpty(t, c.Hook.Command[3])
	if p4 := told(); p4.Result != protocol.ResultApproved {
		t.Errorf("after the jam: %v %v, want the limit back", p4.Result, p4.Reason)
	}
	g.wantOutcomes(t, false, true)
	if p4 := told(); p4.Result != protocol.ResultDenied || p4.Reason != protocol.CodeLimit {
		t.Errorf("third: %v %v, want the limit reached", p4.Result, p4.Reason)
	}
	if got := len(g.hookLog()); got != 1 {
		t.Errorf("%d acts, want 1", got)
	}
}

func TestOutcomeDoesNotWaitForPause(t *testing.T) {
	g := newRig(t)
	begun := make(chan bool)
	go func() { g.relay.awaitReport(t.Context(), lastReportPause); close(begun) }()
	eventually(t, "a new outcome ends the pause", func() bool {
		select {
		case g.relay.unsettled <- struct{}{}:
		default:
		}
		select {
		case <-begun:
			return true
		default:
			return false
		}
	})
}

func TestCARotation(t *testing.T) {
	for _, tc := range []struct {
		name    string
		isKnown bool // the root certified the new key
		isLate  bool // the device learns of it from the server
	}{{"certified by the root", true, false}, {"met with the server", true, true}, {"not certified", false, false}} {
		t.Run(tc.name, func(t *testing.T) {
			f, c := enrolled(t)
			g := start(t, f, c)
			eventually(t, "the first trust is there", func() bool { return g.count("/v1/trust") == 1 && g.relay.Reachable() })
			g.set(func() { f.rotateCA(tc.isKnown) })
			if !tc.isLate {
				must(t, g.relay.client.RefreshTrust(t.Context()))
			}
			addr := f.server.Listener.Addr().String()
			f.stop()
			f.start(addr)
			p := g.phone(t, 100)
			if !tc.isKnown {
				wantError(t, ask1(t, p.conn, p.m1), message.LinkError{Code: protocol.CodeServerUnreachable})
				return
			}
			p.challenge(protocol.Approve)
			if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved || len(g.hookLog()) != 1 {
				t.Errorf("over TLS by the new ca: %v, %d acts", p4.Result, len(g.hookLog()))
			}
		})
	}
}

func TestTooManyServicesForAnOrder(t *testing.T) {
	o := deviceapi.Order{}
	for i := range 254 {
		o.Services = append(o.Services, protocol.Service(100+i))
	}
	if err := checkOrder(o); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("254 services: %v, want a format error", err)
	}
	o.Services = slices.Delete(o.Services, 0, 1)
	if err := checkOrder(o); err != nil {
		t.Errorf("253 services: %v", err)
	}
}
