package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/internal/fault"
)

// TestProblems: the exit code and the hint for each problem.
func TestProblems(t *testing.T) {
	for kind, want := range map[string]struct {
		code fault.Code
		hint string
	}{
		problem.NotFound:    {fault.NotFound, "countersignctl device list shows the names"},
		problem.Exists:      {fault.Failed, "hint: gate is enrolled or has an open code"},
		problem.Conflict:    {fault.Failed, ""},
		problem.KeyStep:     {fault.Failed, "countersignctl key list"},
		problem.Unsupported: {fault.Unavailable, "pkcs11-tool"},
		problem.Uncovered:   {fault.Failed, "backup.recipient"},
		problem.Quorum:      {fault.Denied, "countersignctl change list"},
		problem.Over:        {fault.Denied, "at most once"},
		problem.Signer:      {fault.Denied, "countersignctl admin list"},
		problem.Signature:   {fault.BadSignature, "CHANGE.md"},
		problem.Input:       {fault.Usage, ""},
		problem.Unavailable: {fault.Unavailable, "countersignctl hsm status"},
		problem.Store:       {fault.Unavailable, "the database is locked"},
		problem.PIN:         {fault.Auth, "wrong PINs"},
		problem.Locked:      {fault.Unavailable, "countersignctl hsm unlock"},
		problem.Internal:    {fault.Failed, ""},
	} {
		address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_ = json.NewEncoder(w).Encode(adminapi.Problem{Type: kind, Detail: "it did not work"})
		})
		code, stdout, stderr := run(t, address, "device", "suspend", "gate")
		if code != int(want.code) || stdout != "" || !strings.Contains(stderr, "error: it did not work\n") || !strings.Contains(stderr, want.hint) {
			t.Errorf("%s: exit code %d, %q, %q", kind, code, stdout, stderr)
		}
		if want.hint == "" && strings.Contains(stderr, "hint:") {
			t.Errorf("%s: %q", kind, stderr)
		}
	}
	taken := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(adminapi.Problem{Type: problem.Exists, Detail: "it is there"})
	})
	if _, _, stderr := run(t, taken, "admin", "revoke", "ann", "--yes"); strings.Contains(stderr, "--replace") || !strings.Contains(stderr, "admin list") {
		t.Errorf("an administrator that is taken: %q", stderr)
	}
	code, _, stderr := run(t, "unix:"+filepath.Join(t.TempDir(), "none"), "status")
	if code != int(fault.Unavailable) || !strings.Contains(stderr, "hint: start countersignd") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// TestAdminAddress: nothing but a Unix socket is dialled, whatever listens there.
func TestAdminAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan struct{}, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			dialled <- struct{}{}
			_ = c.Close()
		}
	}()
	for _, address := range []string{"tcp:" + l.Addr().String(), l.Addr().String(), "var/admin.sock", "unix:", "unix:@admin", "http://" + l.Addr().String(), ""} {
		code, stdout, stderr := run(t, address, "status")
		if code != int(fault.Usage) || stdout != "" || !strings.Contains(stderr, "--admin:") || !strings.Contains(stderr, "unix:") {
			t.Errorf("%q: exit code %d, %q, %q", address, code, stdout, stderr)
		}
	}
	_ = l.Close()
	select {
	case <-dialled:
		t.Error("a TCP address was dialled")
	default:
	}
}

// TestDryRun: no command with --dry-run sends anything but a dry run.
func TestDryRun(t *testing.T) {
	sent := 0
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			DryRun  bool `json:"dry_run"`
			Request bool `json:"request"`
		}
		if r.Method != http.MethodGet {
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil || !body.DryRun {
				t.Errorf("%s %s: not a dry run, %v", r.Method, r.URL.Path, err)
			}
			if !body.Request {
				sent++
			}
		}
		answer := "{}"
		if strings.HasPrefix(r.URL.Path, adminapi.Prefix+"key/") && !body.Request && !strings.HasSuffix(r.URL.Path, "/backup") {
			answer = "[]"
		}
		_, _ = w.Write([]byte(answer))
	})
	out := filepath.Join(t.TempDir(), "out")
	commands := [][]string{
		{"device", "invite", "gate"},
		{"admin", "resume", "ann"},
		{"admin", "revoke", "ann"},
		{"admin", "suspend", "ann"},
		{"admin", "add", "ann", "--public", "00"},
		{"change", "withdraw", "0011223344556677"},
		{"key", "backup", "--out", out},
		{"store", "backup", "--out", out},
		{"client", "invite", "vera"},
		{"client", "resume", "vera"},
		{"client", "unlock", "vera"},
		{"device", "resume", "gate"},
		{"client", "suspend", "vera"},
		{"client", "revoke", "vera"},
		{"device", "suspend", "gate"},
		{"device", "revoke", "gate"},
	}
	for _, verb := range []string{"create", "rotate", "activate", "retire", "suspend", "resume", "destroy"} {
		commands = append(commands, []string{"key", verb, "root@2"})
	}
	for _, args := range commands {
		if code, _, stderr := run(t, address, append(args, "--dry-run")...); code != 0 {
			t.Errorf("%v: exit code %d, %q", args, code, stderr)
		}
	}
	if sent != len(commands)-6 { // suspend, revoke and withdraw only show
		t.Errorf("%d requests for %d commands", sent, len(commands))
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("a dry run wrote a backup")
	}
}

// TestPolicyDocument: a policy cannot write to the terminal of the administrator who reads it.
func TestPolicyDocument(t *testing.T) {
	const document = "version = 1\n# \x1b]0;title\x07 \u202egnp.exe\n\tname = \"a\"\n"
	address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(adminapi.Policy{Document: document})
	})
	code, stdout, stderr := run(t, address, "policy", "show", "--document")
	if code != 0 || stdout != "version = 1\n# \\u001b]0;title\\u0007 \\u202egnp.exe\n\tname = \"a\"\n" || !strings.Contains(stderr, "-o json") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestWaitsForACopy: a copy of the database that waits for administrators is fetched once they have countersigned, with
// --wait; without it the command prints the request and exits with 3.
func TestWaitsForACopy(t *testing.T) {
	out := filepath.Join(t.TempDir(), "db")
	content := []byte("a database")
	sum := sha256.Sum256(content)
	about, err := json.Marshal(adminapi.StoreCopy{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:]), Statement: []byte("signed")})
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	address := serving(t, func(w http.ResponseWriter, r *http.Request) {
		c := adminapi.Change{ID: "0011223344556677", Kind: "store.backup", State: "open", Required: 2, More: 1}
		switch {
		case strings.HasSuffix(r.URL.Path, "/kept"):
			_, _ = w.Write([]byte("{}"))
		case r.Method == http.MethodGet:
			if looks++; looks > 1 {
				c.State = "granted"
			}
			_ = json.NewEncoder(w).Encode(c)
		case looks < 2:
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(adminapi.Problem{Type: problem.Quorum, Detail: "store.backup waits", Change: &c})
		default:
			w.Header().Set(adminapi.HeaderCopy, string(about))
			_, _ = w.Write(content)
		}
	})
	code, stdout, stderr := run(t, address, "store", "backup", "--out", out)
	if code != int(fault.Denied) || !strings.Contains(stdout, "0011223344556677") || !strings.Contains(stderr, "countersignctl change sign 0011223344556677") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("a file was written")
	}
	if code, _, stderr := run(t, address, "store", "backup", "--out", out, "--wait"); code != 0 || looks != 2 {
		t.Errorf("exit code %d, %q, after %d looks", code, stderr, looks)
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != string(content) {
		t.Errorf("%q, %v", got, err)
	}
	looks = 0
	code, _, stderr = run(t, address, "store", "backup", "--out", filepath.Join(out, "none"), "--wait")
	if code != int(fault.IO) || looks != 0 {
		t.Errorf("a file that cannot be written: exit code %d, %q, after %d looks", code, stderr, looks)
	}
}
