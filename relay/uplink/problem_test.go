package uplink

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
)

// TestProblemOf: which errors of a call keep a device from its work, and what is said about them.
func TestProblemOf(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	expired := x509.CertificateInvalidError{Cert: &x509.Certificate{NotBefore: now.Add(time.Hour), NotAfter: now.Add(2 * time.Hour)}, Reason: x509.Expired}
	for _, c := range []struct {
		err        error
		kind, text string
	}{
		{nil, "", ""},
		{fmt.Errorf("calling: %w", &StatusError{Status: 403, Code: protocol.CodeDevice}), "refused", "suspended or revoked"},
		{&StatusError{Status: 503, Code: protocol.CodeHSM}, "", ""},
		{&StatusError{Status: 400, Code: protocol.CodeFormat}, "", ""},
		{fmt.Errorf("calling: %w: %w: %w", protocol.CodeServerUnreachable, errStranger, expired), "clock", "2030-01-02T03:04:05Z"},
		{fmt.Errorf("calling: %w: %w", protocol.CodeServerUnreachable, errStranger), "stranger", "server is not known"},
		{fmt.Errorf("calling: %w", protocol.CodeTimeout), "timeout", "timeout"},
		{fmt.Errorf("calling: %w: %w", protocol.CodeServerUnreachable, errors.New("connection refused")), "unreachable", "connection refused"},
	} {
		if p := problemOf(c.err, now); p.kind != c.kind || !strings.Contains(p.text, c.text) {
			t.Errorf("%v: %+v", c.err, p)
		}
	}
}

// TestJudge: a problem is new when its kind is another than before, and a call that ends late changes nothing.
func TestJudge(t *testing.T) {
	c := &Client{}
	for i, step := range []struct {
		number         uint64
		reachable      bool
		kind           string
		changed, isNew bool
	}{
		{1, false, "unreachable", false, true}, // the first failure, of a device that was never reachable
		{2, false, "unreachable", false, false},
		{3, false, "clock", false, true},
		{5, true, "", true, false},
		{4, false, "unreachable", false, false}, // ended after call 5
		{6, true, "refused", false, true},
		{7, false, "unreachable", true, true},
	} {
		d := c.judge(step.number, finding{isReachable: step.reachable, isServed: true, problem: problem{kind: step.kind, text: step.kind}})
		if d.reached != step.changed || d.worse != step.isNew {
			t.Errorf("step %d: %+v", i, d)
		}
	}
	if c.Problem() != "unreachable" || c.Reachable() {
		t.Errorf("%q, reachable %t", c.Problem(), c.Reachable())
	}
}
