package matrix

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/pool"
)

// allVariable runs every module; without it those that need no daemon run.
const allVariable = "COUNTERSIGN_MATRIX"

// module is one PKCS#11 module and how it gets a token.
type module struct {
	name     string
	packages []string // of Debian; the first has the version
	everyDay bool     // in every go test, not only in the matrix
	long     bool     // but not in go test -short
	setUp    func(t *testing.T) token
}

// token is what a pool needs to open one.
type token struct {
	library, label, pin, initArgs string
	workers                       int           // 0 is the pool's default
	timeout                       time.Duration // 0 is the pool's default
	require                       []hsm.Usage   // without which the token does not open
}

var modules = []module{softHSM, nss, proxy, remote, openCryptoki, tpm2}

func TestMain(m *testing.M) { os.Exit(run(m, os.Stderr)) }

func run(m *testing.M, stderr io.Writer) int {
	code := m.Run()
	if err := hsmtest.RemoveWorker(); err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return code
}

// TestModules is read by table: the name of each direct subtest, its first log line
// "version: …", and the capabilities below that.
func TestModules(t *testing.T) {
	for _, m := range modules {
		t.Run(m.name, func(t *testing.T) {
			if (!m.everyDay || m.long && testing.Short()) && os.Getenv(allVariable) != "all" {
				t.Skip("make hsm-matrix runs it")
			}
			t.Logf("version: %s", m.version(t))
			hsmtest.Run(t, func(t *testing.T) hsm.Token { return open(t, m.setUp(t)) })
		})
	}
}

// version returns the version of the first package. It skips a module whose packages are
// not installed, and names them.
func (m module) version(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("dpkg-query", "--show", "--showformat", "${Version}\n", m.packages[0]).Output()
	if version := strings.TrimSpace(string(out)); err == nil && version != "" {
		return m.packages[0] + " " + version
	}
	t.Skipf("not installed: %s", strings.Join(m.packages, ", "))
	return ""
}

func open(t *testing.T, k token) *pool.Pool {
	t.Helper()
	log := &strings.Builder{}
	opened, err := pool.Open(t.Context(), pool.Config{
		Binary: hsmtest.Worker(t), Module: k.library, TokenLabel: k.label, PIN: hsm.PIN(k.pin), InitArgs: k.initArgs,
		Workers: k.workers, Timeout: k.timeout, Require: k.require,
		Logger: hclog.New(&hclog.LoggerOptions{Output: hclog.NewLeveledWriter(log, nil), Level: hclog.Warn}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		opened.Close()
		if t.Failed() {
			t.Log(log)
		}
	})
	return opened
}

// library finds a shared library by its name below Debian's directories.
func library(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"} {
		for _, below := range []string{"", "/nss", "/pkcs11"} {
			if path := dir + below + "/" + name; exists(path) {
				return path
			}
		}
	}
	t.Skipf("no %s", name)
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// command runs a program to its end. It skips the test if the program is not installed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no program %s", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

const tokenLabel = "countersign"

// secrets are the PINs of a token's user and of its security officer.
type secrets struct{ user, officer string }

// initialize initializes the first free token with OpenSC.
func initialize(t *testing.T, library string, pins secrets) {
	t.Helper()
	command(t, "pkcs11-tool", "--module", library, "--init-token", "--slot-index", "0", "--label", tokenLabel, "--so-pin", pins.officer)
	command(t, "pkcs11-tool", "--module", library, "--init-pin", "--token-label", tokenLabel, "--so-pin", pins.officer, "--login",
		"--login-type", "so", "--new-pin", pins.user)
}

// daemon starts a program and ends it with the test, by its pid.
func daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Skipf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, out)
		}
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, end := time.NewTicker(10*time.Millisecond), time.After(10*time.Second)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within 10 seconds: %s", what)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The Makefile installs what the modules name.
func TestPackagesAreInTheMakefile(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(string(makefile), func(r rune) bool { return strings.ContainsRune(" \t\n:", r) })
	for _, m := range modules {
		for _, p := range m.packages {
			if !slices.Contains(words, p) {
				t.Errorf("%s needs %s", m.name, p)
			}
		}
	}
}
