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
	"strings"
	"time"

	"countersign/hsm/hsmtest"
	"countersign/hsm/sheet"
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

// newStage makes a token in memory where there is a file system for that: what a
// disk costs is not what is measured.
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

// pool is the rate of an operation through the service.
func (s *stage) pool(ctx context.Context, c comparison) (float64, error) {
	if s.broken {
		c.service = service{1, 1, 1}
	}
	module, env := s.token.Module, []string{s.token.Env()}
	if c.latency > 0 {
		module = s.shim
		env = append(env, "FAULTSHIM_MODULE="+s.token.Module, "FAULTSHIM_FILE="+filepath.Join(s.dir, "no-rules"),
			"FAULTSHIM_RULES=C_Sign latency "+strconv.FormatInt(c.latency.Microseconds(), 10))
	}
	out, err := s.output(ctx, env, "countersignctl", "hsm", "bench", "-o", "json",
		"--module", module, "--token-label", s.token.Label, "--pin-file", s.pin, "--operation", c.operation, "--time", s.time.String(),
		"--workers", strconv.Itoa(c.service.workers), "--sessions", strconv.Itoa(c.service.sessions), "--callers", strconv.Itoa(c.service.callers))
	if err != nil {
		return 0, err
	}
	var b sheet.Bench
	if err := json.Unmarshal(out, &b); err != nil {
		return 0, err
	}
	for _, m := range b.Measured {
		if m.Path == sheet.PathService && m.Parallel == c.service.callers && m.Rate > 0 {
			return m.Rate, nil
		}
	}
	return 0, fmt.Errorf("no rate in %s", out)
}

// rawbench is the rate of an operation in a C loop of one thread.
func (s *stage) rawbench(ctx context.Context, operation string) (float64, error) {
	out, err := s.output(ctx, []string{s.token.Env()}, "rawbench", s.token.Module, s.token.Label, s.token.PIN,
		operation, "1", strconv.Itoa(int(s.time.Seconds())))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(out))
	if len(fields) != 5 {
		return 0, fmt.Errorf("rawbench: %q", out)
	}
	return strconv.ParseFloat(fields[2], 64)
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
