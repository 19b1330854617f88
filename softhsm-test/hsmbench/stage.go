package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"countersign/hsm/hsmtest"
)

// stage is a token with the programs that measure it.
type stage struct {
	bin, dir string
	shim     string // path of faultshim.so, or ""
	time     time.Duration
	broken   bool
	token    hsmtest.SoftHSM
	pin      string // path
}

// newStage makes a token in memory if there is a file system for it: the speed of a disk
// is not measured.
func newStage(bin string, each time.Duration, broken bool) (s *stage, err error) {
	parent := "/dev/shm"
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		parent = ""
	}
	s = &stage{bin: bin, time: each, broken: broken}
	if s.dir, err = os.MkdirTemp(parent, "hsm-bench-"); err != nil {
		return nil, err
	}
	if s.token, err = hsmtest.MakeSoftHSM(s.dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	s.pin = filepath.Join(s.dir, "pin")
	if err := os.WriteFile(s.pin, []byte(s.token.PIN), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	shim, err := filepath.Abs(filepath.Join(bin, "faultshim.so"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(shim); err == nil {
		s.shim = shim
	}
	return s, nil
}

func (s *stage) close() { _ = os.RemoveAll(s.dir) } // at worst it stays in a temporary directory

// rates is the part of countersignctl hsm bench -o json that is used here.
type rates struct {
	Measured []struct {
		Path      string  `json:"path"`
		Parallel  int     `json:"parallel"`
		PerSecond float64 `json:"per_second"`
	} `json:"measured"`
}

// of returns the rate of a path ("raw" or "service") with a number of threads or callers.
func (r rates) of(path string, parallel int) (float64, error) {
	for _, m := range r.Measured {
		if m.Path == path && m.Parallel == parallel && m.PerSecond > 0 {
			return m.PerSecond, nil
		}
	}
	return 0, fmt.Errorf("no rate of %s with %d in %+v", path, parallel, r)
}

// setup returns the service to measure: the comparison's, or that of BREAK.
func (s *stage) setup(c comparison) service {
	if s.broken {
		return service{1, 1, 1}
	}
	return c.service
}

// bench measures the token and the service on it.
func (s *stage) bench(ctx context.Context, c comparison) (r rates, err error) {
	module, env, set := s.token.Module, []string{s.token.Env()}, s.setup(c)
	if c.latency > 0 {
		module = s.shim
		env = append(env, "FAULTSHIM_MODULE="+s.token.Module, "FAULTSHIM_FILE="+filepath.Join(s.dir, "no-rules"),
			"FAULTSHIM_RULES=C_Sign latency "+strconv.FormatInt(c.latency.Microseconds(), 10))
	}
	out, err := s.output(ctx, env, "countersignctl", "hsm", "bench", "-o", "json",
		"--module", module, "--token-label", s.token.Label, "--pin-file", s.pin, "--operation", c.operation, "--time", s.time.String(),
		"--workers", strconv.Itoa(set.workers), "--sessions", strconv.Itoa(set.sessions), "--callers", strconv.Itoa(set.callers))
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	return r, err
}

func (s *stage) output(ctx context.Context, env []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it has keys to remove
	cmd.WaitDelay = 20 * time.Second
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, stderr.Bytes())
	}
	return out, nil
}
