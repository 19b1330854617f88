package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/internal/fault"
)

func writePolicy(t *testing.T, quorum string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.toml")
	document := "[[service]]\nid = 100\nname = \"door.open\"\nlevel = 1\n[quorum]\n" + quorum
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPolicyCheckJSON: the result of a check is JSON when JSON is asked for, also for a document that is refused.
func TestPolicyCheckJSON(t *testing.T) {
	check := func(path string) (code int, r policyReport, stderr string) {
		t.Helper()
		code, stdout, stderr := run(t, "unix:"+filepath.Join(t.TempDir(), "none"), "policy", "check", path, "-o", "json")
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			t.Fatalf("%q: %v", stdout, err)
		}
		return code, r, stderr
	}
	code, r, _ := check(writePolicy(t, "\"key.destroy\" = 2\n"))
	if code != 0 || !r.Good || len(r.Hash) != 64 || r.Able != nil || len(r.Warnings) != 1 || len(r.Problems) != 0 {
		t.Errorf("exit code %d, %+v", code, r)
	}
	code, r, stderr := check(writePolicy(t, "\"key.destroy\" = 0\n"))
	if code != int(fault.Config) || r.Good || len(r.Problems) != 1 || r.Problems[0].Line != 6 || !strings.Contains(stderr, "line 6") {
		t.Errorf("exit code %d, %+v, %q", code, r, stderr)
	}
}

// TestPolicyWarnings: check and apply warn of quorums that need everyone, or more than there are.
func TestPolicyWarnings(t *testing.T) {
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode([]adminapi.Administrator{{Name: "ann", Status: "active"}, {Name: "bob", Status: "suspended"}})
			return
		}
		_ = json.NewEncoder(w).Encode(adminapi.Policy{PolicyVersion: adminapi.PolicyVersion{Version: 2}})
	})
	const all = "\"policy.apply\" = 2\n\"admin.add\" = 2\n"
	for quorum, want := range map[string][]string{
		"": nil,
		all: {"warning: admin.add, policy.apply: every one of the 2 administrators who can countersign has to; " +
			"if one is away or suspended, no such change can be made"},
		all + "\"key.activate\" = 3\n": {
			"key.activate takes 3 administrators, and 2 can change that by policy.apply", "comes into use by itself, at its date",
			"key.activate takes 3 administrators, and 2 can countersign",
		},
		"local = false\n": nil,
	} {
		path := writePolicy(t, quorum)
		for _, verb := range []string{"check", "apply"} {
			code, _, stderr := run(t, address, "policy", verb, path)
			missing := slices.ContainsFunc(want, func(text string) bool { return !strings.Contains(stderr, text) })
			if code != 0 || missing || (want == nil) != (stderr == "") {
				t.Errorf("%s %q: exit code %d, %q", verb, quorum, code, stderr)
			}
		}
	}
}

// TestPolicyDiffOfUnknown: quorums that cannot be compared are not shown as unchanged.
func TestPolicyDiffOfUnknown(t *testing.T) {
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "policy") {
			_ = json.NewEncoder(w).Encode(adminapi.Policy{Document: "[of.a.newer.release]\n"})
			return
		}
		_ = json.NewEncoder(w).Encode([]adminapi.Administrator{})
	})
	code, stdout, stderr := run(t, address, "policy", "diff", writePolicy(t, ""))
	if code != 0 || strings.Contains(stdout, "none") || !strings.Contains(stdout, "Warning: the quorums were not compared") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestPolicyDiffJSON: the comparison of policies is JSON when JSON is asked for.
func TestPolicyDiffJSON(t *testing.T) {
	path := writePolicy(t, "local = false\n")
	before := writePolicy(t, "")
	raw, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "policy") {
			_ = json.NewEncoder(w).Encode(adminapi.Policy{Document: string(raw)})
			return
		}
		_ = json.NewEncoder(w).Encode([]adminapi.Administrator{{Name: "ann", Status: "active"}})
	})
	for file, want := range map[string]policyChanges{
		path:   {Quorums: []quorumChange{{"the admin socket", "counting as an administrator", "not counting"}}, Signers: []string{"ann"}},
		before: {Signers: []string{"ann", "local"}},
	} {
		code, stdout, stderr := run(t, address, "policy", "diff", file, "-o", "json")
		var got policyChanges
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 {
			t.Fatalf("exit code %d, %q, %q: %v", code, stdout, stderr, err)
		}
		if !slices.Equal(got.Quorums, want.Quorums) || !slices.Equal(got.Signers, want.Signers) || (got.Diff == "") != (file == before) {
			t.Errorf("%+v", got)
		}
	}
}
