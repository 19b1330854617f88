package config

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asOther is set in a process of this test that has another user.
const asOther = "COUNTERSIGN_TEST_SOFTHSM"

// TestTokenError: a user who may not read the tokens learns which directory it is and whose, at each place where the
// permission may be missing. The test needs root to become another user; a user who is not root has no right to the
// files of mode 0000 either.
func TestTokenError(t *testing.T) {
	if conf := os.Getenv(asOther); conf != "" {
		if err := softHSMAccess(conf); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir, err := os.MkdirTemp("/tmp", "tokens") // t.TempDir has directories that other users may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	conf, tokens := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "tokens")
	one := filepath.Join(tokens, "one")
	if err := errors.Join(os.Chmod(dir, 0o755), os.MkdirAll(one, 0o755),
		os.WriteFile(conf, []byte("log.level = INFO\ndirectories.tokendir = "+tokens+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(one, 0o777); err != nil { //nolint:gosec // a test
		t.Fatal(err)
	}
	if out, ok := tryAsOther(t, conf); !ok {
		t.Errorf("with every permission: %s", out)
	}
	for _, path := range []string{conf, tokens, one} {
		info, err := os.Stat(path)
		if err == nil {
			err = os.Chmod(path, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		if out, ok := tryAsOther(t, conf); ok || !strings.Contains(out, "no permission for the token's files: "+path+" belongs to user ") {
			t.Errorf("%s: %s", path, out)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

// tryAsOther runs the test again as another user, if this one is root.
func tryAsOther(t *testing.T, conf string) (out string, ok bool) {
	t.Helper()
	program := filepath.Join(filepath.Dir(conf), "test")
	if raw, err := os.ReadFile(os.Args[0]); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(program, raw, 0o755); err != nil { //nolint:gosec // another user runs it
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run", "^TestTokenError$")
	cmd.Env, cmd.Dir = append(os.Environ(), asOther+"="+conf), filepath.Dir(conf)
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	raw, err := cmd.CombinedOutput()
	return string(raw), err == nil
}

// TestTokenErrorOfOthers: the error of another module, and no error, stay as they are.
func TestTokenErrorOfOthers(t *testing.T) {
	t.Setenv("SOFTHSM2_CONF", filepath.Join(t.TempDir(), "none"))
	err := errors.New("no token")
	if got := TokenError("/usr/lib/libCryptoki2.so", err); got != err { //nolint:errorlint // the same value
		t.Error(got)
	}
	if got := TokenError("/usr/lib/softhsm/libsofthsm2.so", err); got != err { //nolint:errorlint // the same value
		t.Error(got)
	}
	if got := TokenError("/usr/lib/softhsm/libsofthsm2.so", nil); got != nil {
		t.Error(got)
	}
}
