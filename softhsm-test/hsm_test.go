package softhsmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

var benchOutput = regexp.MustCompile(`^derive +ECDH.* = ([0-9.]+), aim 1\.50, (reached|missed)\nhsm-bench: ([01]) reached, ([01]) missed\n$`)

// TestHSMBench: make hsm-bench measures and keeps count. Whether an aim is reached is
// the machine's affair and not a test's.
func TestHSMBench(t *testing.T) {
	bench := filepath.Join(t.TempDir(), "hsmbench")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bench, "./hsmbench").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(env string, args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), bench, append([]string{"-bin", string(programs)}, args...)...)
		cmd.Env = append(os.Environ(), env)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	out, code := run("BREAK=worker", "-only", "derive", "-time", "1s", "-rounds", "1")
	m := benchOutput.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("exit code %d: %s", code, out)
	}
	ratio, err := strconv.ParseFloat(m[1], 64)
	if err != nil || ratio <= 0 {
		t.Fatalf("ratio %q, %v", m[1], err)
	}
	want := fmt.Sprint("missed", "0", "1", 1)
	if ratio >= 1.5 {
		want = fmt.Sprint("reached", "1", "0", 0)
	}
	if got := fmt.Sprint(m[2], m[3], m[4], code); got != want {
		t.Errorf("exit code %d, want %s: %s", code, want, out)
	}
	for _, c := range [][]string{{"BREAK=nothing"}, {"BREAK=", "-time", "1"}, {"BREAK=", "-only", "dance"}, {"BREAK=", "extra"}} {
		if out, code := run(c[0], c[1:]...); code != 2 {
			t.Errorf("%q: exit code %d: %s", c, code, out)
		}
	}
}
