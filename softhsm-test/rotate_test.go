package softhsmtest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// TestRotate holds make rotate-test to its word for one key, and that it can fail.
func TestRotate(t *testing.T) {
	rotate := filepath.Join(t.TempDir(), "rotate")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", rotate, "countersign/softhsm-test/rotate").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct {
		name, keys string
		exit       int
	}{
		{"", "decision", 0},
		{"mac", "mac", 1},
		{"", "wrap", 0},
		{"wrap", "wrap", 1},
		{"cert", "kem", 1},
		{"retired", "kem", 1},
		{"nonsense", "kem", 2},
		{"", "nothing", 2},
	} {
		t.Run("BREAK="+c.name+" "+c.keys, func(t *testing.T) {
			bin := harness.Bin(filepath.Dir(rotate))
			r := must[harness.Result](t)(bin.Run(t.Context(), harness.Call{
				Program: "rotate", Args: []string{"-quick", "-keys", c.keys}, Env: []string{"BREAK=" + c.name, "COUNTERSIGN_BIN=" + string(programs)},
			}))
			lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
			last := lines[len(lines)-1]
			good := strings.HasPrefix(last, "rotate-test: ") && strings.HasSuffix(last, " passed, 0 failed")
			if r.Code != c.exit || good != (c.exit == 0) {
				t.Errorf("exit code %d, last line %q: want %d\n%s%s", r.Code, last, c.exit, r.Stdout, r.Stderr)
			}
		})
	}
}
