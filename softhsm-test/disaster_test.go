package softhsmtest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// TestDisaster holds make disaster-test to its word, and that it can fail.
func TestDisaster(t *testing.T) {
	if _, err := exec.LookPath("age"); err != nil {
		t.Fatal("age is not installed: run make deps")
	}
	disaster := filepath.Join(t.TempDir(), "disaster")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", disaster, "countersign/softhsm-test/disaster").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for broken, exit := range map[string]int{"": 0, "share": 1, "seal": 1, "database": 1, "nonsense": 2} {
		t.Run("BREAK="+broken, func(t *testing.T) {
			r := must[harness.Result](t)(harness.Bin(filepath.Dir(disaster)).Run(t.Context(), harness.Call{
				Program: "disaster", Args: []string{"-quick"}, Env: []string{"BREAK=" + broken, "COUNTERSIGN_BIN=" + string(programs)},
			}))
			lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
			last := lines[len(lines)-1]
			good := strings.HasPrefix(last, "disaster-test: ") && strings.HasSuffix(last, " passed, 0 failed")
			if r.Code != exit || good != (exit == 0) {
				t.Errorf("exit code %d, last line %q: want %d\n%s%s", r.Code, last, exit, r.Stdout, r.Stderr)
			}
		})
	}
}
