package softhsmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// wrapper is in the place of a program: it notes arguments and environment, and becomes the program.
const wrapper = `#!/bin/sh
{ echo "$0" "$@"; env; } >> %q
exec %q "$@"
`

// TestArgumentsHaveNoSecret: what countersignd dev starts gets no PIN and no activation code as an
// argument or in its environment, where other processes see it.
func TestArgumentsHaveNoSecret(t *testing.T) {
	dir := t.TempDir()
	bin := reachable(t, dir)
	notes := filepath.Join(dir, "notes")
	for _, program := range []string{"relayd", "hsm-probe", "hsm-worker"} {
		real := bin.Path(program) + ".real"
		if err := os.Rename(bin.Path(program), real); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bin.Path(program), fmt.Appendf(nil, wrapper, notes, real), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// No other program that gets PINs is found.
	t.Setenv("PATH", filepath.Dir(must[string](t)(filepath.EvalSymlinks("/bin/sh")))+":/bin:/usr/bin")
	a, err := harness.Start(t.Context(), harness.Config{Bin: bin, Dir: filepath.Join(dir, "dev"), SecondModule: "/usr/lib/softhsm/libsofthsm2.so"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	said := string(must[[]byte](t)(os.ReadFile(notes)))
	for _, want := range []string{"hsm-probe init-token ", "relayd enrol ", "relayd serve ", "hsm-worker"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q was not started", want)
		}
	}
	if strings.Contains(said, "OA1-") {
		t.Error("an activation code is among the arguments")
	}
	for _, name := range []string{"pin", "so-pin", "pin-second", "so-pin-second"} {
		pin := strings.TrimSpace(string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "dev", name)))))
		if len(pin) < 8 || strings.Contains(said, pin) {
			t.Errorf("%s is among the arguments or in the environment", name)
		}
	}
}
