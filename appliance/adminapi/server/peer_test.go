package server

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// callsSocket names the environment variable with the admin socket that this test's own program calls.
const callsSocket = "COUNTERSIGN_TEST_SOCKET"

func TestMain(m *testing.M) {
	if path := os.Getenv(callsSocket); path != "" {
		os.Exit(callSocket(path))
	}
	os.Exit(m.Run())
}

// callSocket exits with 0 if the socket answers, with 3 if it closes the connection, and with 4 if it cannot be reached.
func callSocket(path string) int {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return 4
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // a Unix socket has deadlines
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return 3
	}
	return 0
}

// TestPeerCredentials: a process of another user is not answered, even if the mode of the socket and
// of its directories lets it connect. Only root can start one.
func TestPeerCredentials(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can connect as another user: run this test as root")
	}
	dir, err := os.MkdirTemp("", "admin") // the parents of t.TempDir keep other users out
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program, path := filepath.Join(dir, "caller"), filepath.Join(dir, "admin.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if err := errors.Join(os.WriteFile(program, self, 0o755), os.Chmod(program, 0o755), os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte{1})
			_ = conn.Close()
		}
	}()
	for _, c := range []struct {
		who  string
		uid  uint32
		want int
	}{{"root", 0, 0}, {"another user", 65534, 3}} {
		cmd := exec.Command(program)
		cmd.Env = []string{callsSocket + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatalf("%s: %v", c.who, err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("%s: exit code %d, want %d\n%s", c.who, got, c.want, strings.TrimSpace(string(out)))
		}
	}
}
