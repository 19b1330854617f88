package softhsmtest

import (
	"context"
	"crypto/ecdh"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/hsm/pool"
	"countersign/softhsm-test/harness"
)

// TestOtherKeyOnSecondToken: a second token whose wrap key has another value under the same id
// joins nothing, and the first one serves.
func TestOtherKeyOnSecondToken(t *testing.T) {
	const softhsm = "/usr/lib/softhsm/libsofthsm2.so"
	dir := filepath.Join(t.TempDir(), "dev")
	a, err := harness.Start(t.Context(), harness.Config{Bin: programs, Dir: dir, Module: softhsm, SecondModule: softhsm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.Running() {
			_ = a.Kill()
		}
	})
	if _, err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", filepath.Join(dir, "softhsm2.conf"))
	plantKey(t, dir, "wrap@1")
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}

	status := ctl(t, a, 0, "hsm", "status")
	for _, want := range []string{"first +countersign-dev +ready", "second +countersign-dev-2 +refused", `token second is refused: key "wrap@1": compared with token first: the token has another key`} {
		matches(t, status, want)
	}
	matches(t, ctl(t, a, 1, "hsm", "drain", "first"), "last token")
	ctl(t, a, 0, "hsm", "drain", "second")
	matches(t, ctl(t, a, 69, "hsm", "resume", "second"), "another key under the same id")
	doctor := ctl(t, a, 0, "status") // the daemon serves
	if strings.Contains(doctor, "unavailable") {
		t.Errorf("%s", doctor)
	}
	if status, members := get(a.Ops + "/readyz"); status != 200 || !strings.Contains(members["tokens"].(string), "refused") {
		t.Errorf("readyz %d, %v", status, members)
	}
	if _, err := a.Stop(); err != nil {
		t.Fatal(err)
	}
}

// plantKey puts a random secret key in the place of a key on the second token.
func plantKey(t *testing.T, dir, label string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pin, err := os.ReadFile(filepath.Join(dir, "pin-second"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := pool.Open(ctx, pool.Config{
		Binary: programs.Path("hsm-worker"), Module: "/usr/lib/softhsm/libsofthsm2.so", TokenLabel: "countersign-dev-2",
		PIN: hsm.PIN(strings.TrimSpace(string(pin))),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	keys, err := second.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(keys, func(k hsm.Key) bool { return k.Label == label })
	with := slices.IndexFunc(keys, func(k hsm.Key) bool { return k.Usage == hsm.DeriveP256 })
	if i < 0 || with < 0 {
		t.Fatalf("no key %s among %v", label, keys)
	}
	spec := hsm.KeySpec{Label: label, Usage: keys[i].Usage}
	to, err := keys[with].ECDH()
	if err != nil {
		t.Fatal(err)
	}
	other, err := memory.New().Generate(ctx, hsm.KeySpec{Label: label, Usage: spec.Usage, Recipients: []*ecdh.PublicKey{to}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Destroy(ctx, keys[i].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Restore(ctx, hsm.Restore{Spec: spec, Sealed: other.Sealed[0], With: keys[with].ID, ID: keys[i].ID}); err != nil {
		t.Fatal(err)
	}
}

// ctl runs countersignctl and returns what it prints.
func ctl(t *testing.T, a *harness.Appliance, code int, args ...string) string {
	t.Helper()
	r, err := programs.Run(t.Context(), harness.Call{Program: "countersignctl", Args: append([]string{"--admin", a.Admin}, args...)})
	if err != nil || r.Code != code {
		t.Fatalf("%v: exit code %d, want %d, %v: %s%s", args, r.Code, code, err, r.Stdout, r.Stderr)
	}
	return r.Stdout + r.Stderr
}

func matches(t *testing.T, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(text) {
		t.Errorf("no %q in %s", pattern, text)
	}
}
