package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign/appliance/adminapi"
)

// TestPlannedActivation: a date of activation in the future reads as planned, and one in the past as it is.
func TestPlannedActivation(t *testing.T) {
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]adminapi.Key{{Name: "kem", Version: 1, ActivatedAt: &past}, {Name: "kem", Version: 2, ActivatedAt: &future}})
	})
	code, stdout, stderr := run(t, address, "key", "list")
	if code != 0 || !strings.Contains(stdout, "  "+date(past)+"  ") || !strings.Contains(stdout, "  planned for "+date(future)+"  ") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestListSaysItWasCut: a list of change requests and a history of the policy say when there is more.
func TestListSaysItWasCut(t *testing.T) {
	for n, want := range map[int]string{adminapi.ChangesShown - 1: "", adminapi.ChangesShown: "the newest 1000 requests"} {
		address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(make([]adminapi.Change, n))
		})
		if code, _, stderr := run(t, address, "change", "list"); code != 0 || (want == "") != (stderr == "") || !strings.Contains(stderr, want) {
			t.Errorf("%d requests: exit code %d, %q", n, code, stderr)
		}
	}
	for oldest, want := range map[uint64]string{1: "", 2: "the newest 1 versions"} {
		address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode([]adminapi.PolicyVersion{{Version: oldest}})
		})
		if code, _, stderr := run(t, address, "policy", "history"); code != 0 || (want == "") != (stderr == "") || !strings.Contains(stderr, want) {
			t.Errorf("from version %d: exit code %d, %q", oldest, code, stderr)
		}
	}
}

// TestClientShow: one client is shown with its keys, and with whether the UV key counts.
func TestClientShow(t *testing.T) {
	for want, roles := range map[string][]string{"02ab, attested: it counts": {"uv"}, "02ab, not attested": {"approver"}} {
		address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(adminapi.Client{Name: "vera", SigningKey: "03cd", UVKey: "02ab", Roles: roles, Highest: -1})
		})
		code, stdout, stderr := run(t, address, "client", "show", "vera")
		if code != 0 || !strings.Contains(stdout, want) || !strings.Contains(stdout, "03cd") || !strings.Contains(stdout, "Highest counter:  -\n") {
			t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
		}
	}
}
