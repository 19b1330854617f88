package softhsmtest

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

// TestKilledAppliance: a request answered before kill -9 gets the same answer after it, and is
// decided once.
func TestKilledAppliance(t *testing.T) {
	b := newBench(t)
	gate := b.device("gate")
	p := b.phone("alice")
	g, open := b.grant(gate, p, door), b.grant(gate, p, door)
	m3 := b.m3(g.Session, protocol.Approve)
	req := protocol.CountersignRequest{Handle: g.res.Handle, M3: m3}
	first := must[protocol.CountersignResponse](t)(gate.Countersign(t.Context(), req))
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

	again := must[protocol.CountersignResponse](t)(gate.Countersign(t.Context(), req))
	keys := protocol.Keyring{Root: p.Trust.Root, KeyCerts: p.Trust.KeyCerts(protocol.UseDecision), Now: uint64(time.Now().Unix())}
	one := must[protocol.Decision](t)(keys.Verify(first.Decision))
	two := must[protocol.Decision](t)(keys.Verify(again.Decision))
	if again.Result != protocol.ResultApproved || one.Transaction != two.Transaction || !bytes.Equal(one.Marshal(), two.Marshal()) {
		t.Errorf("decided %+v, after the restart %+v", one, two)
	}
	wantResult(t, must[protocol.P4](t)(g.Result(m3, again.M4)), protocol.P4{Result: protocol.ResultApproved})
	if after := b.tally(); after != before {
		t.Errorf("counts went from %+v to %+v", before, after)
	}
	// A challenge that was open is one still: apply stored nothing.
	res := must[protocol.CountersignResponse](t)(gate.Countersign(t.Context(), protocol.CountersignRequest{
		Handle: open.res.Handle, M3: b.m3(open.Session, protocol.Approve),
	}))
	if res.Result != protocol.ResultApproved {
		t.Errorf("open challenge: result %v", res.Result)
	}
}
