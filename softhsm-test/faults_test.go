package softhsmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/shim/shimtest"
)

// TestFaults plays one short scene of hsm-faults, and holds that it can fail.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "faults"), "countersign/softhsm-test/faults").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, p := range harness.Programs {
		if err := os.Symlink(programs.Path(p), filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := shimtest.Build(dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		exit int
		last string // end of the last line
	}{
		{"", 0, " passed, 0 failed"},
		{"release", 1, " passed, 1 failed"},
		{"nonsense", 2, ""},
	} {
		t.Run("BREAK="+c.name, func(t *testing.T) {
			r := must[harness.Result](t)(harness.Bin(dir).Run(t.Context(), harness.Call{
				Program: "faults", Args: []string{"-only", "busy"}, Env: []string{"BREAK=" + c.name, "COUNTERSIGN_BIN=" + dir},
			}))
			lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
			if last := lines[len(lines)-1]; r.Code != c.exit || !strings.HasSuffix(last, c.last) {
				t.Errorf("exit code %d, last line %q: want %d, …%q\n%s%s", r.Code, last, c.exit, c.last, r.Stdout, r.Stderr)
			}
		})
	}
}
