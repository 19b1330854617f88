package softhsmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// other runs the programs as a user who may not enter the state directory: nobody, if the test runs as root, or this
// user after giving up its own permissions.
type other struct {
	*testing.T
	dir string // with a configuration, and a state directory that another user may not enter
}

func newOther(t *testing.T) *other {
	o := &other{t, t.TempDir()}
	for path, mode := range map[string]os.FileMode{
		filepath.Dir(o.dir): 0o755, o.dir: 0o755, // a temporary directory is closed to others
	} {
		o.ok(os.Chmod(path, mode))
	}
	for _, program := range []string{"countersignd", "hsm-worker"} {
		text, err := os.ReadFile(programs.Path(program))
		o.ok(errors.Join(err, os.WriteFile(filepath.Join(o.dir, program), text, 0o755))) //nolint:gosec // a program
	}
	config := "state_dir = \"state\"\n[hsm]\npin = { source = \"file\", path = \"pin\" }\n[trust]\ndomain = \"example.test\"\n"
	o.ok(os.WriteFile(filepath.Join(o.dir, "config.toml"), []byte(config), 0o644)) //nolint:gosec // no secret
	state := filepath.Join(o.dir, "state")
	o.ok(os.Mkdir(state, 0o700))
	o.ok(os.WriteFile(filepath.Join(state, "countersign.db"), nil, 0o600))
	if os.Getuid() != 0 {
		o.ok(os.Chmod(state, 0))
		t.Cleanup(func() { o.ok(os.Chmod(state, 0o700)) }) //nolint:gosec // a directory
	}
	return o
}

func (o *other) ok(err error) {
	o.Helper()
	if err != nil {
		o.Fatal(err)
	}
}

// run returns the output of countersignd and its exit code.
func (o *other) run(args ...string) (out string, code int) {
	cmd := exec.CommandContext(o.Context(), filepath.Join(o.dir, "countersignd"), args...) //nolint:gosec // the program under test
	cmd.Dir = o.dir
	if os.Getuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		o.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// TestOtherUser: a user who may not enter the state directory reads that, and nothing about the PIN, the token or a
// store that is not there.
func TestOtherUser(t *testing.T) {
	o := newOther(t)
	for _, c := range []struct {
		command, says string
		code          int
	}{
		{"doctor", "this user may not use the state directory", 78},
		{"serve", "permission denied", 74},
	} {
		out, code := o.run(c.command)
		t.Log(out)
		if code != c.code || !strings.Contains(out, c.says) || !strings.Contains(out, "as the user of countersignd") {
			t.Errorf("%s: exit code %d, want %d and %q", c.command, code, c.code, c.says)
		}
		for _, wrong := range []string{"refused the PIN", "no store at", "init"} {
			if strings.Contains(out, wrong) {
				t.Errorf("%s says %q", c.command, fmt.Sprintf("…%s…", wrong))
			}
		}
	}
}
