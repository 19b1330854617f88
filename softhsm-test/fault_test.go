package softhsmtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/appliance/adminapi"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
)

// TestTokenGone takes the token away under a running appliance: 503 and not ready,
// no decision; and without a restart all is well when it is back.
func TestTokenGone(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	g := b.grant(gate, p, door)
	req := deviceapi.CountersignRequest{Handle: g.res.Handle, M3: b.m3(g.Session, protocol.Approve)}
	token, away := filepath.Join(b.Config.Dir, "token"), filepath.Join(b.Config.Dir, "away")
	if err := os.Rename(token, away); err != nil {
		t.Fatal(err)
	}
	workers := must[[]harness.Process](t)(b.Children())
	for _, w := range workers {
		if w.Name != "hsm-worker" {
			continue
		}
		if err := w.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	b.readyz(http.StatusServiceUnavailable)
	b.changes(nothing, func() {
		answer := must[device.Answer](t)(gate.Post(t.Context(), device.Call{Path: "/v1/countersign", Type: deviceapi.BodyType, Body: req.Marshal()}))
		wantAnswer(t, answer, device.Answer{Status: http.StatusServiceUnavailable, Code: protocol.CodeHSM})
		if answer.RetryAfter == "" || answer.RetryAfter == "0" {
			t.Errorf("Retry-After %q", answer.RetryAfter)
		}
		me, err := message.ParseLinkError(b.ask(b.apply(p, p.Next(100)).M1))
		if err != nil || me.Code != protocol.CodeHSM || me.Retry == 0 {
			t.Errorf("ME %+v, %v", me, err)
		}
	})
	if err := os.Rename(away, token); err != nil {
		t.Fatal(err)
	}
	b.readyz(http.StatusOK)
	b.changes(denied, func() { // decided now, and by no relay acted on
		res := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), req))
		if res.Result != protocol.ResultApproved {
			t.Errorf("result %v", res.Result)
		}
	})
}

// readyz waits for an answer of /readyz.
func (b *bench) readyz(want int) {
	b.Helper()
	err := harness.Until(b.Context(), "/readyz", func() (bool, error) {
		res, err := http.Get(b.Ops + "/readyz")
		if err != nil {
			return false, err
		}
		return res.StatusCode == want, res.Body.Close()
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestStopWithOpenConnections: open connections do not keep the appliance from ending within 2 s of
// SIGTERM.
func TestStopWithOpenConnections(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate") // idle over HTTP/2
	p := b.phone("alice")
	g := b.grant(gate, p, door)
	b.challenge(b.link(), p, p.Next(100)) // a phone that thinks
	address := strings.TrimPrefix(b.URL, "https://")
	half := must[net.Conn](t)(net.Dial("tcp", address)) // half a handshake
	t.Cleanup(func() { _ = half.Close() })
	silent := must[*tls.Conn](t)(tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})) // and not a word
	t.Cleanup(func() { _ = silent.Close() })
	children := must[[]harness.Process](t)(b.Children())
	took, err := b.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", took)
	for _, c := range children {
		if running, err := c.Running(); running || err != nil {
			t.Errorf("%s runs on: %v", c.Name, err)
		}
	}
	if _, err := gate.Countersign(t.Context(), deviceapi.CountersignRequest{Handle: g.res.Handle, M3: []byte{0x31}}); err == nil {
		t.Error("a stopped appliance answers")
	}
}

// TestKilledAppliance: a request answered before kill -9 gets the same answer after it, and is
// decided once.
func TestKilledAppliance(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	g, open := b.grant(gate, p, door), b.grant(gate, p, door)
	m3 := b.m3(g.Session, protocol.Approve)
	req := deviceapi.CountersignRequest{Handle: g.res.Handle, M3: m3}
	first := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), req))
	before := b.tally()

	children := must[[]harness.Process](t)(b.Children())
	names := []string{}
	for _, c := range children {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	if want := []string{"hsm-worker", "hsm-worker", "relayd"}; !slices.Equal(names, want) {
		t.Fatalf("children %v, want %v", names, want)
	}
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, c := range children {
		if err := c.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate = gate.At(b.URL)
	t.Cleanup(gate.Close)

	again := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), req))
	keys := trust.Keyring{Root: p.Trust.Root, KeyCerts: p.Trust.KeyCerts(trust.UseDecision), Now: uint64(time.Now().Unix())}
	one := must[receipt.Decision](t)(receipt.Verify(keys, first.Decision))
	two := must[receipt.Decision](t)(receipt.Verify(keys, again.Decision))
	if again.Result != protocol.ResultApproved || one.Transaction != two.Transaction || !bytes.Equal(one.Marshal(), two.Marshal()) {
		t.Errorf("decided %+v, after the restart %+v", one, two)
	}
	wantResult(t, must[message.P4](t)(g.Result(m3, again.M4)), message.P4{Result: protocol.ResultApproved})
	if after := b.tally(); after != before {
		t.Errorf("counts went from %+v to %+v", before, after)
	}
	// A challenge that was open is one still: apply stored nothing.
	res := must[deviceapi.CountersignResponse](t)(gate.Countersign(t.Context(), deviceapi.CountersignRequest{
		Handle: open.res.Handle, M3: b.m3(open.Session, protocol.Approve),
	}))
	if res.Result != protocol.ResultApproved {
		t.Errorf("open challenge: result %v", res.Result)
	}
}

// TestKilledChanges: an appliance that is killed while it makes a change makes it once:
// before it was taken not at all, and afterwards when it starts again.
func TestKilledChanges(t *testing.T) {
	b := newBench(t)
	interrupted := 0
	for round, at := range []int{1, 2, 2, 2, 3, 2} {
		verb := []string{"rotate", "activate"}[round%2]
		before := len(must[[]adminapi.Record](t)(b.Records(t.Context())))
		args := []string{"--admin", b.Admin, "key", verb, "root"}
		if verb == "activate" {
			args = append(args, "--yes")
		}
		asking := must[*harness.Daemon](t)(programs.Start(harness.Call{Program: "countersignctl", Args: args}))
		b.killAt(before + at)
		if _, err := asking.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := b.ended()
		// A change that was not taken is requested again. If the request is still open, it is the
		// same one.
		if c.State == "open" {
			r := must[harness.Result](t)(b.Ctl(t.Context(), args[2:]...))
			if c = b.ended(); r.Code != 0 {
				t.Fatalf("round %d: exit code %d: %s", round, r.Code, r.Stderr)
			}
		}
		if c.State != "executed" {
			t.Fatalf("round %d: %s %s is %s: %s", round, c.Kind, verb, c.State, c.Reason)
		}
		events := map[string]int{}
		for _, rec := range must[[]adminapi.Record](t)(b.Records(t.Context()))[before:] {
			events[rec.Kind+" "+fmt.Sprint(rec.Fields["event"])]++
		}
		if events["change taken"] != 1 || events["change executed"] != 1 || events["key "+verb] != 1 {
			t.Fatalf("round %d: %v", round, events)
		}
		if b.resumed() {
			interrupted++
		}
	}
	t.Logf("%d of 6 changes were interrupted between taken and executed", interrupted)
	if interrupted == 0 {
		t.Error("no change was interrupted: the kills fall at the wrong time")
	}
}

// killAt kills the appliance as soon as so many audit records are there, and waits until
// its children are gone.
func (b *bench) killAt(records int) {
	b.Helper()
	children := must[[]harness.Process](b.T)(b.Children())
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.Admin[len("unix:"):])
	}}}
	defer client.CloseIdleConnections()
	err := harness.Until(b.Context(), fmt.Sprintf("audit record %d", records), func() (bool, error) {
		res, err := client.Get(fmt.Sprintf("http://appliance/v1/admin/audit?after=%d", records-1))
		if err != nil {
			return false, err
		}
		defer func() { _ = res.Body.Close() }() // it was read
		var page []adminapi.Record
		err = json.NewDecoder(res.Body).Decode(&page)
		return len(page) > 0, err
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := b.Kill(); err != nil {
		b.Fatal(err)
	}
	for _, c := range children {
		if err := c.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// ended is the newest change once it is not under way any more.
func (b *bench) ended() (c adminapi.Change) {
	b.Helper()
	err := harness.Until(b.Context(), "the end of the change", func() (bool, error) {
		r, err := b.Ctl(b.Context(), "change", "list", "-o", "json")
		if err != nil {
			return false, err
		}
		var all []adminapi.Change
		if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all) == 0 {
			return false, fmt.Errorf("%d changes: %v: %s", len(all), err, r.Stderr)
		}
		c = all[0]
		return c.State != "taken", nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// resumed reports whether the appliance found a change that was taken and had not ended.
func (b *bench) resumed() bool {
	return strings.Contains(b.Appliance.Log(), "interrupted change is made now")
}
