package softhsmtest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"countersign/softhsm-test/harness"
)

// TestOutputStopsNothing: countersignd and relayd serve, and act, while the reader of their output is stuck or gone.
func TestOutputStopsNothing(t *testing.T) {
	for _, reader := range []string{"stuck", "gone"} {
		t.Run(reader, func(t *testing.T) {
			t.Parallel()
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = read.Close() }() // it may be closed already
			if _, err := unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
				t.Fatal(err)
			}
			if reader == "gone" {
				_ = read.Close()
			}
			dir := harness.TempDir(t)
			a := must[*harness.Appliance](t)(harness.Start(t.Context(), harness.Config{Bin: programs, Dir: dir + "/dev", Cwd: dir, Stderr: write}))
			_ = write.Close() // the daemons have it
			b := &bench{t, a}
			b.enrolCLI("alice", dir)
			for range 12 { // each is logged by the relay, and 12 fill the pipe
				b.approves(dir + "/alice")
			}
			if acts := must[[]harness.Act](t)(a.Acts()); len(acts) != 12 {
				t.Errorf("%d acts of 12", len(acts))
			}
			if took, err := a.Stop(); err != nil {
				t.Errorf("after %v: %v", took, err)
			}
		})
	}
}

// TestHangUp: SIGHUP, as a closed terminal or logrotate sends it, interrupts neither a daemon nor an act.
func TestHangUp(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	b.enrolCLI("alice", dir)
	if err := os.Remove(b.Hooklog); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(b.Hooklog, 0o600); err != nil { // the hook waits until the test reads
		t.Fatal(err)
	}
	done := make(chan harness.Result, 1)
	go func() {
		done <- b.Phone(b.Context(), dir+"/alice", "authorize", "--yes", "--link", b.Link, "--service", "door.open=100")
	}()
	err := harness.Until(t.Context(), "the hook", func() (bool, error) { return b.acting() })
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	act := must[[]byte](t)(os.ReadFile(b.Hooklog))
	if !strings.Contains(string(act), `"service":100`) {
		t.Errorf("the hook got %q", act)
	}
	if r := <-done; r.Code != 0 {
		t.Errorf("phone: exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if err := os.Remove(b.Hooklog); err != nil {
		t.Fatal(err)
	}
	b.approves(dir + "/alice")
}

// acting reports whether a hook of the appliance's relay runs.
func (b *bench) acting() (bool, error) {
	children, err := b.Children()
	for _, c := range children {
		if err == nil && c.Name == "relayd" {
			hooks, err := c.Children()
			return len(hooks) > 0, err
		}
	}
	return false, err
}

// enrolCLI enrols countersign-client without a password, with its state in dir/name.
func (b *bench) enrolCLI(name, dir string) {
	b.Helper()
	code := must[string](b.T)(b.Invite(b.Context(), "client", name))
	r := b.Phone(b.Context(), filepath.Join(dir, name), "enrol", "--no-password", "--url", b.URL, code)
	if r.Code != 0 {
		b.Fatalf("enrol: exit code %d: %s", r.Code, r.Stderr)
	}
}

// approves has countersign-client open the door.
func (b *bench) approves(state string) {
	b.Helper()
	r := b.Phone(b.Context(), state, "authorize", "--yes", "--link", b.Link, "--service", "door.open=100")
	if r.Code != 0 {
		b.Errorf("authorize: exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}
