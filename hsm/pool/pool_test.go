package pool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/wire"
)

func TestMain(m *testing.M) {
	code := runTests(m, os.Stderr)
	os.Exit(code)
}

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type rig struct {
	hsm  hsmtest.SoftHSM
	cfg  Config
	log  *lines
	pool *Pool
}

// newRig opens a pool on a new token.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{hsm: hsmtest.NewSoftHSM(t), log: &lines{}}
	r.hsm.Setenv(t)
	r.cfg = Config{
		Binary: hsmtest.Worker(t), Module: r.hsm.Module, TokenLabel: r.hsm.Label, PIN: hsm.PIN(r.hsm.PIN),
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: r.log}),
	}
	if change != nil {
		change(&r.cfg)
	}
	pool, err := Open(t.Context(), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.pool = pool
	t.Cleanup(pool.Close)
	return r
}

func (r *rig) generate(t testing.TB, label string, usage hsm.Usage) hsm.KeyID {
	t.Helper()
	k, err := r.pool.Generate(t.Context(), hsm.KeySpec{Label: label, Usage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return k.ID
}

// secret returns an argument for Import, with new keys.
func (r *rig) secret(t testing.TB) hsm.Import {
	t.Helper()
	enrol, err := r.pool.Generate(t.Context(), hsm.KeySpec{Label: "enrol@1", Usage: hsm.DeriveP256})
	if err != nil {
		t.Fatal(err)
	}
	i := hsmtest.WrapFor(t, enrol, make([]byte, 32))
	i.Wrap = r.generate(t, "wrap@1", hsm.WrapKey)
	return i
}

func (r *rig) pids() (pids []int) {
	for _, l := range *r.pool.live.Load() {
		pids = append(pids, l.proc.cmd.Process.Pid)
	}
	return pids
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	tick, end := time.NewTicker(5*time.Millisecond), time.After(within)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func TestContract(t *testing.T) {
	r := newRig(t, nil)
	hsmtest.Run(t, func(*testing.T) hsm.Token { return r.pool })
	if got := r.pool.State(); got != (State{Ready: true, Alive: 2, Want: 2}) {
		t.Errorf("state %+v after the suite: a worker was lost", got)
	}
	if strings.Contains(r.log.String(), r.hsm.PIN) {
		t.Error("the PIN is in the log")
	}
}

// Every worker finds a key that one worker made.
func TestNewKeyOnAllWorkers(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Workers = 3 })
	id := r.generate(t, "mac@1", hsm.MACKey)
	for _, l := range *r.pool.live.Load() {
		end := time.Now().Add(time.Second)
		q := wire.MAC(id, nil)
		q.Deadline = wire.Now() + int64(time.Second)
		if p, err := l.do(t.Context(), q, limits{hedge: end, deadline: end, overdue: end.Add(grace)}); err != nil || len(p.Payload) != 32 {
			t.Errorf("worker %d: %d bytes, %v", l.proc.cmd.Process.Pid, len(p.Payload), err)
		}
	}
}

// When a worker is killed in any way, calls succeed and it is replaced.
func TestWorkersKilledUnderLoad(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, func(c *Config) { c.Registerer = registry })
	id := r.generate(t, "sign@1", hsm.SignP256)
	digest := sha256.Sum256(nil)
	bring := r.secret(t)
	stop, failed := make(chan struct{}), make(chan error, 8)
	var wg sync.WaitGroup
	for n := range 8 {
		call := func() error {
			_, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:])
			return err
		}
		if n%2 == 1 { // neither leaves anything on the token
			call = func() error {
				kept, err := r.pool.Import(t.Context(), bring)
				if err == nil {
					_, err = r.pool.MACWrapped(t.Context(), bring.Wrap, kept, nil)
				}
				return err
			}
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := call(); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	for range 4 {
		pid := r.pids()[0]
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the worker is replaced", 3*time.Second, func() bool {
			pids := r.pids()
			return len(pids) == 2 && pids[0] != pid && pids[1] != pid
		})
	}
	close(stop)
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Errorf("call: %v", err)
	}
	if got := gather(t, registry, "countersign_hsm_worker_restarts_total"); got != 4 {
		t.Errorf("%v restarts counted, want 4", got)
	}
}

func gather(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// freeze stops a process and waits until each of its threads has stopped.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all threads are stopped", time.Second, func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		return err == nil && !slices.ContainsFunc(threads, func(file string) bool {
			b, err := os.ReadFile(file)
			return err != nil || !strings.Contains(string(b), ") T ")
		})
	})
}

// A stopped process represents a module that hangs.
func TestHungWorker(t *testing.T) {
	const timeout = 300 * time.Millisecond
	r := newRig(t, func(c *Config) { c.Timeout, c.Workers = timeout, 1 })
	id := r.generate(t, "sign@1", hsm.SignP256)
	pid := r.pids()[0]
	freeze(t, pid)
	start, digest := time.Now(), sha256.Sum256(nil)
	_, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:])
	if took := time.Since(start); !errors.Is(err, hsm.ErrUnavailable) || took < timeout || took > timeout+grace {
		t.Errorf("Sign: %v after %s, want ErrUnavailable after %s", err, took, timeout)
	}
	eventually(t, "the worker is killed and replaced", grace+time.Second, func() bool {
		pids := r.pids()
		return len(pids) == 1 && pids[0] != pid
	})
	if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); err != nil {
		t.Errorf("Sign on the new worker: %v", err)
	}
}

// If one of two workers hangs, no call is lost: the other answers.
func TestHungWorkerIsAvoided(t *testing.T) {
	const timeout = 300 * time.Millisecond
	r := newRig(t, func(c *Config) { c.Timeout = timeout })
	id := r.generate(t, "sign@1", hsm.SignP256)
	freeze(t, r.pids()[0])
	digest, failed := sha256.Sum256(nil), 0
	for range 50 {
		if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); err != nil {
			failed++
		}
	}
	if failed != 0 {
		t.Errorf("%d of 50 calls failed, want none", failed)
	}
}

func TestShorterContext(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Workers = 1 })
	id := r.generate(t, "sign@1", hsm.SignP256)
	freeze(t, r.pids()[0])
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := r.pool.Sign(ctx, id, hsm.ES256, make([]byte, 32)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sign: %v, want context.DeadlineExceeded", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %s", took)
	}
}

func TestClose(t *testing.T) {
	r := newRig(t, nil)
	pids := r.pids()
	r.pool.Close()
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("worker %d outlived Close", pid)
		}
	}
	if _, err := r.pool.Keys(t.Context()); !errors.Is(err, ErrClosed) || !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("Keys: %v, want ErrClosed", err)
	}
	if s := r.pool.State(); s.Ready || s.Alive != 0 || !errors.Is(s.Err, ErrClosed) {
		t.Errorf("state %+v", s)
	}
	if string(r.cfg.PIN) != strings.Repeat("\x00", len(r.hsm.PIN)) {
		t.Error("the PIN was not erased")
	}
	if pin, err := r.pool.pin.read(); err == nil {
		t.Errorf("%d bytes of PIN are kept", len(pin))
	}
	if text := r.log.String(); strings.Contains(text, "[WARN]") || strings.Contains(text, "[ERROR]") {
		t.Errorf("closing on purpose was worth a warning:\n%s", text)
	}
}

func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func runTests(m *testing.M, stderr io.Writer) int {
	if os.Getenv(orphanEnv) != "" {
		return orphanParent(os.Stdout)
	}
	code := m.Run()
	if err := hsmtest.RemoveWorker(); err != nil {
		_, _ = io.WriteString(stderr, err.Error()+"\n")
		return 1
	}
	return code
}
