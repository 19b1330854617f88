package softhsmtest

import (
	"database/sql"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// ready returns the answer of /readyz.
func (b *bench) ready() (code int, parts map[string]string, err error) {
	res, err := http.Get(b.Ops + "/readyz")
	if err != nil {
		return 0, nil, err
	}
	err = json.NewDecoder(res.Body).Decode(&parts)
	_ = res.Body.Close() // it was read
	return res.StatusCode, parts, err
}

// waitReady waits for a code of /readyz, with a part that has a text.
func (b *bench) waitReady(code int, part, text string) {
	b.Helper()
	var last map[string]string
	err := harness.Until(b.Context(), "readiness", func() (bool, error) {
		got, parts, err := b.ready()
		last = parts
		return got == code && strings.Contains(parts[part], text), err
	})
	if err != nil {
		b.Fatalf("want %d, %s %q: %v: %v", code, part, text, err, last)
	}
}

// TestReadinessLooksAtTheWork: the appliance is not ready while it cannot store a decision, or use a key.
func TestReadinessLooksAtTheWork(t *testing.T) {
	b := newBench(t)
	b.waitReady(http.StatusOK, "store", "ok")
	db, err := sql.Open("sqlite", filepath.Join(b.Config.Dir, "countersign.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // it was only locked
	tool := must[*sql.Conn](t)(db.Conn(t.Context()))
	if _, err := tool.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	b.waitReady(http.StatusServiceUnavailable, "store", "database is locked")
	if _, err := tool.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	b.waitReady(http.StatusOK, "store", "ok")

	b.deleteKey("countersign-dev", "decision@1")
	b.waitReady(http.StatusServiceUnavailable, "hsm", "decision")
}

// deleteKey removes a private key from a token behind the appliance's back.
func (b *bench) deleteKey(token, label string) {
	b.Helper()
	file := map[string]string{"countersign-dev": "pin", "countersign-dev-2": "pin-second"}[token]
	pin := strings.TrimSpace(string(must[[]byte](b.T)(os.ReadFile(filepath.Join(b.Config.Dir, file)))))
	env := []string{"SOFTHSM2_CONF=" + filepath.Join(b.Config.Dir, "softhsm2.conf")}
	harness.Tool(b.Context(), env, "pkcs11-tool", "--module", harness.SoftHSM, "--token-label", token, "--login", "--pin", pin,
		"--delete-object", "--type", "privkey", "--label", label)
}

// TestDrainNeedsTheKeys: a token is not drained onto one that lacks a key in use.
func TestDrainNeedsTheKeys(t *testing.T) {
	dir := harness.TempDir(t)
	t.Parallel()
	a := must[*harness.Appliance](t)(harness.Start(t.Context(), harness.Config{Bin: programs, Dir: dir + "/dev", SecondModule: harness.SoftHSM}))
	b := &bench{t, a}
	ctl := func(code int, want string, args ...string) {
		t.Helper()
		r := must[harness.Result](t)(b.Ctl(t.Context(), args...))
		if r.Code != code || !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("%v: exit code %d, want %d with %q: %s%s", args, r.Code, code, want, r.Stdout, r.Stderr)
		}
	}
	ctl(0, "24 of 24", "hsm", "status")
	b.deleteKey("countersign-dev-2", "decision@1")
	ctl(0, "token second lacks decision@1", "hsm", "status")
	ctl(1, "second token lacks decision@1", "hsm", "drain", "first")
	ctl(0, "drained", "hsm", "drain", "second")
	if _, err := b.Stop(); err != nil {
		t.Error(err)
	}
}
