package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/protocol"
)

// TestRefusedEnrolmentsAreLogged: the log says who was refused and why, at info. A flood of them gets a bounded number of
// lines, and the rest are counted.
func TestRefusedEnrolmentsAreLogged(t *testing.T) {
	var out bytes.Buffer
	s := &service{T: t, err: fmt.Errorf("activation code of %q is used or expired: %w", "alice", protocol.CodeRefused)}
	a := &API{
		Devices: s, Judge: s, Authorizer: s, Enroller: s, Limits: Limits{Requests: share}, Metrics: NewMetrics(prometheus.NewRegistry()),
		Logger: hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: true, Level: hclog.Info}),
	}
	h := a.Handler()
	for _, path := range []string{"/v1/enrol", "/v1/enrol/device"} {
		out.Reset()
		answer(t, h, from("", http.MethodPost, path, "application/json", "{}"))
		var line map[string]any
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("%s: %q: %v", path, out.String(), err)
		}
		if line["@message"] != "enrolment refused" || line["path"] != path || line["peer"] != "192.0.2.1:1234" || line["status"] != 403.0 ||
			line["error"] != `activation code of "alice" is used or expired: refused` {
			t.Errorf("%s: %v", path, line)
		}
	}
	out.Reset()
	for range 10 * refusalLines {
		answer(t, h, from("", http.MethodPost, "/v1/enrol", "application/json", "{}"))
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n > 2*refusalLines+2 { // the minute may end meanwhile
		t.Errorf("%d lines", n)
	}
	out.Reset()
	answer(t, h, from("gate", http.MethodPost, "/v1/outcome", "application/cbor", outcome))
	if out.Len() != 0 {
		t.Errorf("another request: %s", out.String())
	}
}

// TestRefusalsByMinute: what got no line in a minute is reported with the next one that gets a line or not.
func TestRefusalsByMinute(t *testing.T) {
	var l refusals
	at := time.Unix(1_800_000_000, 0).Truncate(time.Minute)
	for i := range refusalLines + 3 {
		if line, missed := l.admit(at); line != (i < refusalLines) || missed != 0 {
			t.Errorf("refusal %d: line %v, missed %d", i, line, missed)
		}
	}
	if line, missed := l.admit(at.Add(time.Minute)); !line || missed != 3 {
		t.Errorf("the next minute: line %v, missed %d", line, missed)
	}
	if _, missed := l.admit(at.Add(time.Minute)); missed != 0 {
		t.Errorf("reported again: %d", missed)
	}
}
