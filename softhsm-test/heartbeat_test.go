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

	pin := strings.TrimSpace(string(must[[]byte](t)(os.ReadFile(filepath.Join(b.Config.Dir, "pin")))))
	env := []string{"SOFTHSM2_CONF=" + filepath.Join(b.Config.Dir, "softhsm2.conf")}
	for _, o := range harness.Objects(t.Context(), pin, env) {
		if o.Label == "decision@1" {
			harness.Tool(t.Context(), env, "pkcs11-tool", "--module", harness.SoftHSM, "--login", "--pin", pin,
				"--delete-object", "--type", "privkey", "--id", o.ID)
		}
	}
	b.waitReady(http.StatusServiceUnavailable, "hsm", "decision")
}
