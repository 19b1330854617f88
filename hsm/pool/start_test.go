package pool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// counted wraps the worker in a script that leaves a line for each start.
func counted(t *testing.T, binary string) (script string, starts func() int) {
	t.Helper()
	dir := t.TempDir()
	script, count := filepath.Join(dir, "worker"), filepath.Join(dir, "starts")
	text := fmt.Sprintf("#!/bin/sh\necho start >> %s\nexec %s\n", count, binary)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return script, func() int {
		b, err := os.ReadFile(count)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "start")
	}
}

func TestRefusedPIN(t *testing.T) {
	s := hsmtest.NewSoftHSM(t)
	s.Setenv(t)
	script, starts := counted(t, hsmtest.Worker(t))
	log := &lines{}
	_, err := Open(t.Context(), Config{
		Binary: script, Module: s.Module, TokenLabel: s.Label, PIN: hsm.PIN("wrong-canary"),
		Logger: hclog.New(&hclog.LoggerOptions{Output: log}),
	})
	if !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("Open: %v, want ErrPIN", err)
	}
	if n := starts(); n != 1 {
		t.Errorf("%d workers tried the PIN, want 1", n)
	}
	if strings.Contains(log.String()+err.Error(), "wrong-canary") {
		t.Error("the PIN is in log or error")
	}
}

// A PIN that is refused later stops the pool after one attempt, even if several workers
// must be replaced.
func TestPINRefusedLater(t *testing.T) {
	var starts func() int
	r := newRig(t, func(c *Config) { c.Binary, starts = counted(t, c.Binary) })
	if _, err := r.pool.pin.file.WriteAt([]byte("another-pin"), 0); err != nil {
		t.Fatal(err)
	}
	for _, pid := range r.pids() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the pool stops", 5*time.Second, func() bool {
		s := r.pool.State()
		return errors.Is(s.Err, hsm.ErrPIN) && s.Alive == 0 && !s.Ready
	})
	if _, err := r.pool.Sign(t.Context(), hsm.KeyID{}, hsm.ES256, make([]byte, 32)); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("Sign: %v, want ErrPIN", err)
	}
	if n := starts(); n != 3 {
		t.Errorf("%d starts, want 2 and 1 with the refused PIN", n)
	}
}

func TestOpenRefusals(t *testing.T) {
	s := hsmtest.NewSoftHSM(t)
	s.Setenv(t)
	for name, change := range map[string]func(*Config){
		"binary": func(c *Config) { c.Binary = "/nonexistent" },
		"module": func(c *Config) { c.Module = "/nonexistent.so" },
		"token":  func(c *Config) { c.TokenLabel = "another" },
		"exits":  func(c *Config) { c.Binary = "/bin/true" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Binary: hsmtest.Worker(t), Module: s.Module, TokenLabel: s.Label, PIN: hsm.PIN(s.PIN)}
			change(&cfg)
			if _, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("Open: %v, want ErrUnavailable", err)
			}
			if string(cfg.PIN) != strings.Repeat("\x00", len(s.PIN)) {
				t.Error("the PIN was not erased")
			}
		})
	}
}

// The start of a worker that hangs before its hello ends with the context.
func TestOpenHungStart(t *testing.T) {
	script := filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Open(ctx, Config{Binary: script, PIN: hsm.PIN("1234")})
	if took := time.Since(start); !errors.Is(err, hsm.ErrUnavailable) || took > 2*time.Second {
		t.Errorf("Open: %v after %s, want ErrUnavailable", err, took)
	}
}

// A lost token is an error, and the pool keeps its keys; when the token comes back, so
// does the pool.
func TestTokenVanishesAndReturns(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timeout = 300 * time.Millisecond })
	id := r.generate(t, "sign@1", hsm.SignP256)
	digest := sha256.Sum256(nil)
	if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(filepath.Dir(r.hsm.Conf), "tokens")
	away := tokens + ".away"
	if err := os.Rename(tokens, away); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); !errors.Is(err, hsm.ErrUnavailable) {
			t.Fatalf("Sign: %v, want ErrUnavailable", err)
		}
	}
	eventually(t, "no worker is ready", 2*time.Second, func() bool { return !r.pool.State().Ready })
	if err := os.Rename(away, tokens); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all workers are back", 5*time.Second, func() bool { return r.pool.State().Alive == 2 })
	if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); err != nil {
		t.Errorf("Sign: %v", err)
	}
}
