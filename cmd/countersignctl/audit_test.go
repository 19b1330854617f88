package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
)

// TestRecordsForPeople: every column of a record reads as words.
func TestRecordsForPeople(t *testing.T) {
	for fields, want := range map[string]string{
		`{"result":"approved","service":200,"service_name":"payment","amount":"60.50 EUR","level":2,"factors":["signature","password"],
			"text":"coffee","device":{"name":"gate","id":"00112233aabbccdd"},"transaction":"0f0f","evidence":{"statement":"00"}}`: `approved|-|payment (200), 60.50 EUR, "coffee", level 2, signature+password, at gate (00112233aabbccdd), transaction 0f0f`,
		`{"result":"denied","code":18,"reason":"user refused","service":999,"level":1,"factors":[],"evidence":{}}`: "denied: user refused (18)|-|service 999, level 1",
		`{"result":"dry run","service":0,"level":1,"factors":["signature"],"evidence":{}}`:                         "dry run|-|service 0, level 1, signature",
		`{"result":"status","service":2,"level":1,"factors":[],"evidence":{},
			"asked":{"serial":"0001","result":"denied","code":8,"reason":"expired"}}`: "status|-|service 2, level 1, serial 0001 was denied: expired (8)",
		`{"result":"approved","by":{"name":"bob","id":"aa"},"serial":"0001"}`:                                             "approved|bob (aa)|serial 0001",
		`{"event":"invited","actor":{"uid":0,"user":"root"},"roles":["approver"],"expires_at":1893456000,"replace":true}`: "invited|root|expires at 2030-01-01T00:00:00Z, replace true, roles approver",
		`{"event":"enrolled","actor":{"role":"holder of an activation code"},"roles":[],"id":"aa",
			"signing_key":"` + strings.Repeat("ab", 33) + `"}`: "enrolled|holder of an activation code|roles none, signing key abababababababab…",
		`{"locked":{"0001":3,"further serials":2}}`: "-|-|locked (0001: 3, further serials: 2)",
		`{"event":"executed","kind":"client.invite","document":"a9","parameters":{"name":"alice","roles":[]},"required":2,"signed":["ann","bob"],
			"actor":{"uid":0,"user":"root","operator":"bob"}}`: "executed|bob|client.invite alice, signed by ann+bob, 2 needed",
		`{"event":"requested","kind":"key.rotate","parameters":{"name":"kem","verb":"rotate"}}`: "requested|-|key.rotate rotate kem",
		`{"event":"activate","rows":[{"key":"kem@2","revision":2,"activated":1893456000,"not_after":1893456060}]}`: "activate|-|" +
			"rows (activated: 2030-01-01T00:00:00Z, key: kem@2, not after: 2030-01-01T00:01:00Z, revision: 2)",
		`{"performed":false,"transaction":"0011","id":""}`: "not performed|-|transaction 0011",
	} {
		var f map[string]any
		if err := json.Unmarshal([]byte(fields), &f); err != nil {
			t.Fatal(err)
		}
		if got := eventWords(f) + "|" + actorWords(f) + "|" + detailWords(f); got != want {
			t.Errorf("%s\n got %s\nwant %s", fields, got, want)
		}
	}
}

// TestTailSaysWhatItLeavesOut: a list that was cut says so, and how to see the rest.
func TestTailSaysWhatItLeavesOut(t *testing.T) {
	list := func(sequences ...uint64) string {
		return serving(t, func(w http.ResponseWriter, _ *http.Request) {
			records := []adminapi.Record{}
			for _, n := range sequences {
				records = append(records, adminapi.Record{Sequence: n})
			}
			_ = json.NewEncoder(w).Encode(records)
		})
	}
	for _, tc := range []struct {
		address string
		args    []string
		want    string
	}{
		{list(1234, 1233), []string{"-n", "2"}, "showing the newest 2 of 1234 records: --limit shows more, --after 0 the oldest first\n"},
		{list(2, 1), nil, ""},
		{list(), nil, ""},
		{list(8, 9), []string{"--after", "7", "--limit", "2"}, "showing records 8 to 9: --after 9 shows the next ones\n"},
		{list(8, 9), []string{"--after", "7"}, ""},
		{list(1), []string{"--limit", "1001"}, "error: --limit 1001: want 1 to 1000\nhint: --after lists the records page by page\n"},
		{list(1), []string{"--limit", "0"}, "error: --limit 0: want 1 to 1000\nhint: --after lists the records page by page\n"},
	} {
		if _, _, stderr := run(t, tc.address, append([]string{"audit", "tail"}, tc.args...)...); stderr != tc.want {
			t.Errorf("%v: %q, want %q", tc.args, stderr, tc.want)
		}
	}
}

// TestShowRecord: one record is asked for by its number, and shows its leaf too.
func TestShowRecord(t *testing.T) {
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		records := []adminapi.Record{}
		switch after := r.URL.Query().Get("after"); {
		case after == "6" && r.URL.Query().Get("limit") == "1":
			records = append(records, adminapi.Record{Sequence: 7, Subject: "client/alice", Leaf: strings.Repeat("ab", 32)})
		case after == "4": // 5 was removed from the database
			records = append(records, adminapi.Record{Sequence: 6})
		}
		_ = json.NewEncoder(w).Encode(records)
	})
	code, stdout, stderr := run(t, address, "audit", "show", "7")
	if code != 0 || !strings.Contains(stdout, "client/alice") || !strings.Contains(stdout, strings.Repeat("ab", 32)) {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	for number, want := range map[string]int{"8": 5, "5": 5, "0": 2, "x": 2, "-1": 2} {
		if code, _, stderr := run(t, address, "audit", "show", number); code != want {
			t.Errorf("%s: exit code %d, want %d: %q", number, code, want, stderr)
		}
	}
}
