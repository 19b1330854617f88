package hsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// modules are the places where Debian and others install SoftHSM's library.
var modules = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
}

// SoftHSM is an initialized token in its own directory.
type SoftHSM struct {
	Module string // path of the PKCS#11 module
	Label  string // of the token
	PIN    string // of its user
	Conf   string // path for the environment variable SOFTHSM2_CONF
}

// NewSoftHSM makes a token that is removed with the test. The library reads SOFTHSM2_CONF
// once per process: see [SoftHSM.Setenv] and [SoftHSM.Env].
func NewSoftHSM(tb testing.TB) SoftHSM {
	tb.Helper()
	s, err := MakeSoftHSM(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// MakeSoftHSM makes a token in dir, for TestMain, where there is no testing.TB.
func MakeSoftHSM(dir string) (SoftHSM, error) {
	s := SoftHSM{Label: "countersign-test", PIN: "canary-pin-70418", Conf: filepath.Join(dir, "softhsm2.conf")}
	for _, m := range modules {
		if _, err := os.Stat(m); err == nil {
			s.Module = m
			break
		}
	}
	if s.Module == "" {
		return s, fmt.Errorf("making SoftHSM token: no module at any of %v", modules)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return s, fmt.Errorf("making SoftHSM token: %w", err)
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens)
	if err := os.WriteFile(s.Conf, []byte(conf), 0o600); err != nil {
		return s, fmt.Errorf("making SoftHSM token: %w", err)
	}
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", s.Label, "--pin", s.PIN, "--so-pin", "so-"+s.PIN)
	cmd.Env = append(os.Environ(), s.Env())
	if out, err := cmd.CombinedOutput(); err != nil {
		return s, fmt.Errorf("making SoftHSM token: %w: %s", err, out)
	}
	return s, nil
}

// Env returns the assignment with which a child process sees the token.
func (s SoftHSM) Env() string { return "SOFTHSM2_CONF=" + s.Conf }

// Setenv makes the children of this test see the token.
func (s SoftHSM) Setenv(tb testing.TB) { tb.Setenv("SOFTHSM2_CONF", s.Conf) }

// Tool runs pkcs11-tool on the token, logged in, and returns what it prints.
func (s SoftHSM) Tool(tb testing.TB, args ...string) string {
	tb.Helper()
	args = append([]string{"--module", s.Module, "--token-label", s.Label, "--login", "--pin", s.PIN}, args...)
	cmd := exec.Command("pkcs11-tool", args...)
	cmd.Env = append(os.Environ(), s.Env())
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("pkcs11-tool: %v: %s", err, out)
	}
	return string(out)
}

var worker struct {
	once sync.Once
	path string
	err  error
}

// Worker builds hsm-worker, once per process, and returns the path of the binary. It is in
// the system's temporary directory; a test process removes it with [RemoveWorker] in
// TestMain.
func Worker(tb testing.TB) string {
	tb.Helper()
	worker.once.Do(func() {
		dir, err := os.MkdirTemp("", "hsm-worker-")
		if err != nil {
			worker.err = err
			return
		}
		worker.path = filepath.Join(dir, "hsm-worker")
		if out, err := exec.Command("go", "build", "-o", worker.path, "countersign/cmd/hsm-worker").CombinedOutput(); err != nil {
			worker.err = fmt.Errorf("building hsm-worker: %w: %s", err, out)
		}
	})
	if worker.err != nil {
		tb.Fatal(worker.err)
	}
	return worker.path
}

// RemoveWorker removes what [Worker] built.
func RemoveWorker() error {
	if worker.path == "" {
		return nil
	}
	return os.RemoveAll(filepath.Dir(worker.path))
}
