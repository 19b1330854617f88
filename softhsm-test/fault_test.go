package softhsmtest

import (
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/device"
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
	workers := must[[]rig.Process](t)(b.Children())
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
	err := rig.Until(b.Context(), "/readyz", func() (bool, error) {
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

// TestStopWithOpenConnections: nobody who hangs on keeps the appliance from ending
// within 2 s of SIGTERM.
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
	children := must[[]rig.Process](t)(b.Children())
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
