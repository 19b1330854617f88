package softhsmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"countersign/softhsm-test/harness"
)

// nobody is a user without rights: the files in /proc of its processes are root's only if the
// process is not dumpable.
const nobody = 65534

// TestHardened: no program can be read by its own user through /proc, and none leaves a core.
func TestHardened(t *testing.T) {
	dir, err := os.MkdirTemp("", "hardened-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin := reachable(t, dir)
	asleep, err := net.Listen("unix", filepath.Join(dir, "asleep.sock")) // it never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = asleep.Close() })
	own(t, dir)

	daemon := start(t, dir, bin.Path("countersignd"), "dev", "--dir", filepath.Join(dir, "dev"))
	if err := harness.Until(t.Context(), "dev.json", func() (bool, error) {
		_, err := os.Stat(filepath.Join(dir, "dev", "dev.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}); err != nil {
		t.Fatal(err)
	}
	hardened(t, "countersignd", daemon)
	seen := map[string]bool{}
	for _, pid := range childrenOf(t, daemon) {
		name := nameOf(t, pid)
		seen[name] = true
		hardened(t, name, pid)
	}
	if !seen["hsm-worker"] || !seen["relayd"] {
		t.Errorf("children %v", seen)
	}
	hardened(t, "countersignctl", start(t, dir, bin.Path("countersignctl"), "--admin", "unix:"+asleep.Addr().String(), "status"))
	hardened(t, "countersign-client", start(t, dir, bin.Path("countersign-client"), "--state", filepath.Join(dir, "phone"), "enrol", "--url", "https://127.0.0.1:1", "-"))
	hardened(t, "hsm-probe", start(t, dir, bin.Path("hsm-probe"), "probe", "--module", "/usr/lib/softhsm/libsofthsm2.so", "--token-label", "none", "--pin-fd", "0"))
	hardened(t, "relayd", start(t, dir, bin.Path("relayd"), "enrol", "--url", "https://127.0.0.1:1", "--ca", "none", "--state", filepath.Join(dir, "device"), "-"))
}

// reachable copies the programs to where every user can start them.
func reachable(t *testing.T, dir string) harness.Bin {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.CopyFS(bin, os.DirFS(string(programs))); err != nil {
		t.Fatal(err)
	}
	return harness.Bin(bin)
}

func own(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// start starts a program that waits for its standard input, or serves.
func start(t *testing.T, dir, program string, args ...string) (pid int) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	cmd.Dir = dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // how it ends is no part of the test
	})
	return cmd.Process.Pid
}

// hardened waits until a process is not dumpable and may leave no core.
func hardened(t *testing.T, name string, pid int) {
	t.Helper()
	var last string
	err := harness.Until(t.Context(), name+" to harden itself", func() (bool, error) {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return false, err
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			return false, err
		}
		_, core, _ := strings.Cut(string(limits), "Max core file size")
		core, _, _ = strings.Cut(core, "\n")
		owner := info.Sys().(*syscall.Stat_t).Uid
		last = fmt.Sprintf("memory of user %d, cores %s", owner, strings.Join(strings.Fields(core), " "))
		return owner == 0 && strings.Fields(core)[0] == "0" && strings.Fields(core)[1] == "0", nil
	})
	if err != nil {
		t.Errorf("%s: %v: %s", name, err, last)
	}
}

func childrenOf(t *testing.T, pid int) (all []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(text)) {
			var child int
			if _, err := fmt.Sscan(word, &child); err != nil {
				t.Fatal(err)
			}
			all = append(all, child)
		}
	}
	return all
}

func nameOf(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(name))
}
