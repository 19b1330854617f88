package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/appliance/change"
	"countersign/internal/fault"
	"countersign/policy"
)

// halfway is a request that one of two administrators has countersigned.
func halfway(r change.Request) adminapi.Change {
	document := r.Marshal()
	return adminapi.Change{
		ID: change.HashOf(document).ID().String(), Hash: change.HashOf(document).String(), Kind: r.Kind.String(), Document: document,
		State: "open", By: "local", Required: 2, Signed: []string{"ann"}, More: 1, Missing: []string{"bob", "eve"},
		ExpiresAt: time.Now().Add(time.Minute), CountersignedAs: "ann",
	}
}

var destroying = change.Request{
	Version: 1, Kind: policy.KeyDestroy, Parameters: change.Parameters{"name": "decision", "version": uint64(1)},
	Domain: "example.org", By: "local", Created: 1790000000, Expires: 1790000060,
}

// TestFirstOfTwo: a first signature, and a request that waits for others, are successes that say who is missing.
func TestFirstOfTwo(t *testing.T) {
	c := halfway(destroying)
	signed := serving(t, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(c) })
	opened := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(adminapi.Problem{Type: problem.Quorum, Detail: "waits", Change: &c})
	})
	for _, args := range [][]string{
		{"change", "sign", c.ID, "--yes"},
		{"key", "destroy", "decision@1", "--yes"},
		{"admin", "revoke", "cat", "--yes"},
		{"client", "invite", "vera"},
		{"device", "resume", "gate"},
	} {
		address := opened
		if args[0] == "change" {
			address = signed
		}
		code, stdout, stderr := run(t, address, append(args, "-o", "json")...)
		var got adminapi.Change
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || got.State != "open" || got.More != 1 {
			t.Errorf("%v: exit code %d, %+v: %v", args, code, got, err)
		}
		if strings.Contains(stderr, "error:") || !strings.Contains(stderr, "countersigned as ann; 1 more needed: bob or eve, before ") ||
			!strings.Contains(stderr, "countersignctl change sign "+c.ID) {
			t.Errorf("%v: %q", args, stderr)
		}
	}
}

func TestChoiceWords(t *testing.T) {
	for want, c := range map[string]adminapi.Change{
		"bob":                          {More: 1, Missing: []string{"bob"}},
		"bob or eve":                   {More: 1, Missing: []string{"bob", "eve"}},
		"ann, bob or eve":              {More: 1, Missing: []string{"ann", "bob", "eve"}},
		"bob and eve":                  {More: 2, Missing: []string{"bob", "eve"}},
		"any 2 of ann, bob and eve":    {More: 2, Missing: []string{"ann", "bob", "eve"}},
		"but only bob can countersign": {More: 2, Missing: []string{"bob"}},
		"but no other administrator can countersign": {More: 2},
	} {
		if got := choiceWords(c); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 11, 30, 23, 0, 0, 0, time.FixedZone("", 3600))
	for want, at := range map[string]time.Time{
		"22:30 UTC": now.Add(30 * time.Minute), "2026-12-01 00:00 UTC": now.Add(2 * time.Hour),
	} {
		if got := clock(at, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestChangeShow: a request is shown with its parameters and with what it does.
func TestChangeShow(t *testing.T) {
	c := halfway(change.Request{
		Version: 1, Kind: policy.ClientReplace, Domain: "example.org", By: "local", Created: 1790000000, Expires: 1790000060,
		Parameters: change.Parameters{
			"name": "vera", "roles": []string{}, "was_roles": []string{"approver"}, "ttl_s": uint64(3600), "code_sha256": make([]byte, 32),
		},
	})
	code, stdout, stderr := run(t, answering(t, c), "change", "show", c.ID)
	for _, want := range []string{"roles: approver becomes none\n", "ttl_s = 3600\n", "name = vera\n", "1 of 2 administrators (ann)\n", "1 more: bob or eve\n"} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, no %q in %q, %q", code, want, stdout, stderr)
		}
	}
}

// TestChangeShowPolicy: a policy is shown as its difference from the one in force: lines, quorums and signers.
func TestChangeShowPolicy(t *testing.T) {
	before := string(policy.Default())
	after := strings.Replace(before, "local = true\n", "local = false\n\"policy.apply\" = 2\n# \u202e\n", 1)
	if before == after {
		t.Fatal("the default policy has another [quorum]")
	}
	c := halfway(change.Request{
		Version: 1, Kind: policy.PolicyApply, Domain: "example.org", By: "local", Created: 1790000000, Expires: 1790000060,
		Parameters: change.Parameters{"document": []byte(after)},
	})
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, adminapi.Prefix) {
		case "policy":
			_ = json.NewEncoder(w).Encode(adminapi.Policy{PolicyVersion: adminapi.PolicyVersion{Version: 3}, Document: before})
		case "admin":
			_ = json.NewEncoder(w).Encode([]adminapi.Administrator{{Name: "ann", Status: "active"}, {Name: "bob", Status: "active"}, {Name: "cat", Status: "suspended"}})
		default:
			_ = json.NewEncoder(w).Encode(c)
		}
	})
	code, stdout, stderr := run(t, address, "change", "show", c.ID)
	for _, want := range []string{
		"--- policy version 3, in force\n", "\n-local = true\n", "\n+local = false\n", `+# \u202e`,
		"policy.apply: from 1 administrator to 2 administrators\n", "the admin socket: from counting as an administrator to not counting\n",
		"Under it 2 can countersign: ann, bob\n", "Warning: policy.apply: every one of the 2 administrators",
		"policy.apply takes 2 administrators, and 1 can change that by admin.add",
	} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, no %q in:\n%s%s", code, want, stdout, stderr)
		}
	}
	if code, stdout, stderr := run(t, address, "change", "sign", c.ID, "--dry-run"); code != 0 || stdout != "" || !strings.Contains(stderr, "\n+local = false\n") {
		t.Errorf("before a signature: exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestSpans: a duration that a flag does not take is refused before anything is sent, in the words of the user.
func TestSpans(t *testing.T) {
	for flag, want := range map[string]string{
		"--ttl 9000h": "error: --ttl 9000h: at most 720h\n", "--expires 169h": "error: --expires 169h: at most 168h\n",
		"--ttl 0s": "error: --ttl 0s: at least 1s\n", "--expires 1.5s": "error: --expires 1.5s: want whole seconds\n",
		"--ttl soon": "error: --ttl soon: want a duration such as 90m or 24h\n", "--floor 9": "error: --floor 9: want a level from 1 to 4\n",
	} {
		code, _, stderr := run(t, "unix:/none", append([]string{"device", "invite", "gate"}, strings.Fields(flag)...)...)
		if code != int(fault.Usage) || !strings.HasPrefix(stderr, want) {
			t.Errorf("%s: exit code %d, %q", flag, code, stderr)
		}
	}
	for text, d := range map[string]time.Duration{"24h": 24 * time.Hour, "1h30m": 90 * time.Minute, "30s": 30 * time.Second, "1h0m5s": time.Hour + 5*time.Second} {
		if got := shortDuration(d); got != text {
			t.Errorf("%q, want %q", got, text)
		}
	}
}

// TestRoleFlag: without --role nothing is said about roles, and an empty one means none.
func TestRoleFlag(t *testing.T) {
	var sent []byte
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		var body map[string]json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		sent = body["roles"]
		_, _ = w.Write([]byte("{}"))
	})
	for want, args := range map[string][]string{
		"": nil, `[]`: {"--role", ""}, `["a","b"]`: {"--role", "a", "--role", "b"},
	} {
		code, _, stderr := run(t, address, slices.Concat([]string{"client", "invite", "vera", "--replace"}, args)...)
		if code != 0 || string(sent) != want {
			t.Errorf("%v: exit code %d, %q, sent %s", args, code, stderr, sent)
		}
	}
}
