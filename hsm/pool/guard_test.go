package pool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// guarded returns a configuration with a guard on disk, whose workers are counted.
func guarded(t *testing.T) (cfg func(pin string) Config, s hsmtest.SoftHSM, starts func() int) {
	t.Helper()
	s = hsmtest.NewSoftHSM(t)
	s.Setenv(t)
	script, starts := counted(t, hsmtest.Worker(t))
	guard := Guard(filepath.Join(t.TempDir(), "pin-refused"))
	return func(pin string) Config {
		return Config{Binary: script, Module: s.Module, TokenLabel: s.Label, PIN: hsm.PIN(pin), Guard: guard}
	}, s, starts
}

// However often the process starts, it tries a refused PIN once, and the right one only
// after the guard is lifted.
func TestGuardSurvives(t *testing.T) {
	cfg, s, starts := guarded(t)
	for n, pin := range []string{"wrong-canary", "wrong-canary", s.PIN} {
		_, err := Open(t.Context(), cfg(pin))
		if !errors.Is(err, hsm.ErrPIN) || errors.Is(err, ErrRefusedBefore) != (n > 0) {
			t.Fatalf("start %d: %v", n+1, err)
		}
	}
	if n := starts(); n != 1 {
		t.Errorf("%d workers were started, want 1", n)
	}
	if err := cfg("").Guard.Lift(); err != nil {
		t.Fatal(err)
	}
	pool, err := Open(t.Context(), cfg(s.PIN))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if left, err := filepath.Glob(string(cfg("").Guard) + "*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A PIN is not tried if its refusal could not be recorded.
func TestGuardMustBeWritable(t *testing.T) {
	cfg, s, _ := guarded(t)
	c := cfg(s.PIN)
	c.Guard = Guard(filepath.Join(t.TempDir(), "absent", "pin-refused"))
	if _, err := Open(t.Context(), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open: %v, want ErrNotExist", err)
	}
}

func TestLockedStart(t *testing.T) {
	cfg, s, starts := guarded(t)
	pool, err := Open(t.Context(), cfg(""))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if got := pool.State(); got.Ready || !errors.Is(got.Err, hsm.ErrLocked) {
		t.Errorf("state %+v, want locked", got)
	}
	if _, err := pool.Keys(t.Context()); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("Keys: %v, want ErrLocked", err)
	}
	for _, pin := range []string{"", "wrong-canary"} {
		if err := pool.Unlock(t.Context(), hsm.PIN(pin)); !errors.Is(err, map[string]error{"": hsm.ErrInput, "wrong-canary": hsm.ErrPIN}[pin]) {
			t.Errorf("Unlock(%q): %v", pin, err)
		}
	}
	if got := pool.State(); got.Ready || !errors.Is(got.Err, hsm.ErrPIN) {
		t.Errorf("state %+v, want a refused PIN", got)
	}
	if err := pool.Unlock(t.Context(), hsm.PIN(s.PIN)); err != nil {
		t.Fatal(err)
	}
	if got := pool.State(); got != (State{Ready: true, Alive: 2, Want: 2}) {
		t.Errorf("state %+v, want ready", got)
	}
	if err := pool.Unlock(t.Context(), hsm.PIN("another")); !errors.Is(err, ErrUnlocked) {
		t.Errorf("second Unlock: %v, want ErrUnlocked", err)
	}
	if n := starts(); n != 3 {
		t.Errorf("%d workers were started, want 1 and 2", n)
	}
}
