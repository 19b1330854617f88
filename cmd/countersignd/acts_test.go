package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/store/audit"
)

// TestLogsActs: each administrative change is one line with actor, verb and target, and without digests, signatures and
// documents. Other records, and what happens by itself for each client or device, are none.
func TestLogsActs(t *testing.T) {
	var out bytes.Buffer
	logs := logActs(hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: true, Level: hclog.Info}))
	by := audit.By(t.Context(), audit.UserOf(4294967294).With("ann"))
	secret := map[string]any{"sha256": []byte{0xAB}, "signature": []byte{0xAB}, "document": []byte{0xAB}, "signers": "abab"}
	act := func(fields map[string]any) map[string]any {
		for name, value := range secret {
			fields[name] = value
		}
		return fields
	}
	for _, tc := range []struct {
		rec  audit.Record
		want map[string]any // nil: no line
	}{
		{
			audit.Act(by, audit.KindClients, "client/alice", act(map[string]any{"event": "suspended", "version": 2})),
			map[string]any{"verb": "suspended", "target": "client/alice", "operator": "ann", "uid": 4294967294.0, "version": 2.0},
		},
		{
			audit.Act(audit.By(t.Context(), audit.Schedule), audit.KindKeys, "key/decision", act(map[string]any{"event": "rotate", "version": 3})),
			map[string]any{"verb": "rotate", "target": "key/decision", "role": "schedule", "version": 3.0},
		},
		{
			audit.Act(by, audit.KindChanges, "change/00", act(map[string]any{"event": "failed", "kind": "key.retire", "reason": "stale"})),
			map[string]any{
				"verb": "failed", "target": "change/00", "operator": "ann", "uid": 4294967294.0, "kind": "key.retire", "reason": "stale",
			},
		},
		{audit.Act(audit.By(t.Context(), audit.Device), audit.KindDevices, "device/gate", act(map[string]any{"event": "renewed"})), nil},
		{audit.NewRecord(audit.KindOutcome, "device/gate", map[string]any{"performed": true}), nil},
		{audit.NewRecord(audit.KindDecision, "client/00", map[string]any{"actor": "x"}), nil},
	} {
		out.Reset()
		logs(tc.rec)
		if tc.want == nil {
			if out.Len() != 0 {
				t.Errorf("%s: %s", tc.rec.Subject, out.String())
			}
			continue
		}
		var line map[string]any
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("%s: %q: %v", tc.rec.Subject, out.String(), err)
		}
		if line["@message"] != "administrative act" || line["@level"] != "info" || strings.Contains(out.String(), `ab"`) {
			t.Errorf("%s", out.String())
		}
		for name := range line {
			if strings.HasPrefix(name, "@") {
				delete(line, name)
			}
		}
		if !reflect.DeepEqual(line, tc.want) {
			t.Errorf("%v, want %v", line, tc.want)
		}
	}
}
