package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := hsmtest.RemoveWorker(); err != nil {
		code = 1
	}
	os.Exit(code)
}

// pair returns a socket and the end for a child.
func pair(t *testing.T) (*wire.Socket, *os.File) {
	t.Helper()
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	return ours, theirs
}

// started runs the real binary with its sockets as file descriptors 3 and 4.
func started(t *testing.T, s hsmtest.SoftHSM) (*wire.Socket, *exec.Cmd, *bytes.Buffer) {
	t.Helper()
	ours, theirs := pair(t)
	defer theirs.Close()
	_, lane := pair(t)
	defer lane.Close()
	cmd, stderr := exec.Command(hsmtest.Worker(t)), &bytes.Buffer{}
	cmd.Env = append(os.Environ(), s.Env())
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs, lane}, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return ours, cmd, stderr
}

func exitCode(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func TestByHand(t *testing.T) {
	out, err := exec.Command(hsmtest.Worker(t)).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitUsage || !strings.Contains(string(out), "not by hand") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestVersion(t *testing.T) {
	out, err := exec.Command(hsmtest.Worker(t), "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "hsm-worker ") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestExitCodes(t *testing.T) {
	s := hsmtest.NewSoftHSM(t)
	good := wire.Config{Module: s.Module, TokenLabel: s.Label, Sessions: 1}
	for _, c := range []struct {
		name     string
		change   func(*wire.Config)
		pin      string
		sentinel error
		code     int
	}{
		{"parent closes", nil, s.PIN, nil, exitOK},
		{"wrong PIN", nil, "wrong-canary", hsm.ErrPIN, exitPIN},
		{"no module", func(c *wire.Config) { c.Module = "/nonexistent.so" }, s.PIN, hsm.ErrUnavailable, exitUnavailable},
		{"no token", func(c *wire.Config) { c.TokenLabel = "another" }, s.PIN, hsm.ErrUnavailable, exitUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, cmd, stderr := started(t, s)
			cfg := good
			cfg.PIN = hsm.PIN(c.pin)
			if c.change != nil {
				c.change(&cfg)
			}
			if err := wire.WriteConfig(conn, cfg); err != nil {
				t.Fatal(err)
			}
			_, err := wire.ReadHello(conn)
			if !errors.Is(err, c.sentinel) {
				t.Errorf("hello: %v, want %v", err, c.sentinel)
			}
			_ = conn.Close()
			if code := exitCode(t, cmd); code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr)
			}
			if strings.Contains(stderr.String(), c.pin) {
				t.Error("the PIN is on standard error")
			}
		})
	}
}

func TestMalformedConfiguration(t *testing.T) {
	conn, cmd, _ := started(t, hsmtest.NewSoftHSM(t))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd); code != exitProtocol {
		t.Errorf("exit code %d, want %d", code, exitProtocol)
	}
}

// Neither a core file nor a debugger can read the PIN or a shared secret.
func TestNoCore(t *testing.T) {
	s := hsmtest.NewSoftHSM(t)
	conn, cmd, _ := started(t, s)
	err := wire.WriteConfig(conn, wire.Config{Module: s.Module, TokenLabel: s.Label, PIN: hsm.PIN(s.PIN), Sessions: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.ReadHello(conn); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CORE, nil, &limit); err != nil || limit != (unix.Rlimit{}) {
		t.Errorf("core limit %+v, %v", limit, err)
	}
	_ = conn.Close()
	if code := exitCode(t, cmd); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
