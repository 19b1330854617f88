package pool

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// orphanEnv makes the test binary a parent that waits to be killed. Its value has the
// worker, module, label and PIN.
const orphanEnv = "COUNTERSIGN_TEST_ORPHAN"

func orphanParent(stdout io.Writer) int {
	v := strings.Split(os.Getenv(orphanEnv), "\n")
	pool, err := Open(context.Background(), Config{Binary: v[0], Module: v[1], TokenLabel: v[2], PIN: hsm.PIN(v[3])})
	if err != nil {
		_, _ = fmt.Fprintln(stdout, err)
		return 1
	}
	for _, l := range *pool.live.Load() {
		_, _ = fmt.Fprintln(stdout, l.proc.cmd.Process.Pid)
	}
	select {}
}

// No worker survives its parent, not even one that is stopped and does not see its socket
// closed.
func TestNoOrphans(t *testing.T) {
	s := hsmtest.NewSoftHSM(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), s.Env(), orphanEnv+"="+strings.Join([]string{hsmtest.Worker(t), s.Module, s.Label, s.PIN}, "\n"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in, pids := bufio.NewScanner(out), []int(nil)
	for len(pids) < 2 && in.Scan() {
		pid, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Fatalf("parent says %q", in.Text())
		}
		pids = append(pids, pid)
	}
	if len(pids) != 2 || !alive(pids[0]) || !alive(pids[1]) {
		t.Fatalf("workers %v", pids)
	}
	freeze(t, pids[0])
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says that it was killed
	eventually(t, "both workers are gone", 2*time.Second, func() bool { return !alive(pids[0]) && !alive(pids[1]) })
}
