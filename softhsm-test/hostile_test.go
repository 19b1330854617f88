package softhsmtest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// TestHostile holds make hostile-test to its word with a sample: the world without an
// alteration passes, the exit code says what the last line says, and a break is built.
// TestBreaks, beside the program, holds the other breaks to the source.
func TestHostile(t *testing.T) {
	hostile := filepath.Join(t.TempDir(), "hostile")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", hostile, "countersign/softhsm-test/hostile").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct {
		name, only string
		exit       int
	}{
		{"", "the untouched world", 0},
		{"seal", "directed: a writer", 1},
		{"nonsense", "the untouched world", 2},
		{"", "nothing", 2},
	} {
		t.Run("BREAK="+c.name+" "+c.only, func(t *testing.T) {
			bin := harness.Bin(filepath.Dir(hostile))
			r := must[harness.Result](t)(bin.Run(t.Context(), harness.Call{
				Program: "hostile", Args: []string{"-quick", "-only", c.only}, Env: []string{"BREAK=" + c.name, "COUNTERSIGN_BIN=" + string(programs)},
			}))
			lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
			last := lines[len(lines)-1]
			good := strings.HasPrefix(last, "hostile-test: ") && strings.HasSuffix(last, " passed, 0 failed")
			if r.Code != c.exit || good != (c.exit == 0) {
				t.Errorf("exit code %d, last line %q: want %d\n%s%s", r.Code, last, c.exit, r.Stdout, r.Stderr)
			}
		})
	}
}
