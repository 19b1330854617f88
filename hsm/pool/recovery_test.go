package pool

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// A token that stalls for less than the deadline while there are no calls is well again
// without one: canaries notice it.
func TestStallWhileIdle(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timeout = time.Second })
	id := r.generate(t, "sign@1", hsm.SignP256)
	for _, l := range *r.pool.live.Load() {
		l.setSilent(true)
	}
	eventually(t, "calls are refused", 2*time.Second, func() bool { return !r.pool.Ready() })
	eventually(t, "calls are let through again", 3*time.Second, r.pool.Ready)
	digest := sha256.Sum256(nil)
	if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); err != nil {
		t.Errorf("Sign: %v", err)
	}
}

// A lost worker is replaced with the accepted PIN even if another program puts up the
// guard, or the directory accepts no file.
func TestReplacedUnderGuard(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, func(c *Config) { c.Guard = Guard(filepath.Join(dir, GuardFile)) })
	if err := r.cfg.Guard.raise(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Rename(dir+".away", dir) })
	for _, l := range *r.pool.live.Load() {
		l.proc.kill()
	}
	eventually(t, "both are replaced", 5*time.Second, func() bool { return r.pool.State() == State{Ready: true, Alive: 2, Want: 2} })
}

// Of many wrong PINs at once, one is tried.
func TestConcurrentUnlocks(t *testing.T) {
	cfg, _, starts := guarded(t)
	pool, err := Open(t.Context(), cfg(""))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	pool.unlocking.Lock() // until all of them wait
	var all sync.WaitGroup
	waiting := make(chan struct{}, 20)
	for range cap(waiting) {
		all.Go(func() {
			waiting <- struct{}{}
			if err := pool.Unlock(t.Context(), hsm.PIN("wrong-canary")); !errors.Is(err, hsm.ErrPIN) {
				t.Errorf("Unlock: %v, want ErrPIN", err)
			}
		})
	}
	for range cap(waiting) {
		<-waiting
	}
	pool.unlocking.Unlock()
	all.Wait()
	if n := starts(); n > cap(waiting)/2 { // those that came after the first refusal are tried
		t.Errorf("%d PINs were tried", n)
	}
}

// Close during Unlock ends both.
func TestCloseDuringUnlock(t *testing.T) {
	s := hsmtest.NewSoftHSM(t)
	s.Setenv(t)
	for n := range 8 {
		pool, err := Open(t.Context(), Config{Binary: hsmtest.Worker(t), Module: s.Module, TokenLabel: s.Label, Workers: 4})
		if err != nil {
			t.Fatal(err)
		}
		ctx, begun := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			begun()
			done <- pool.Unlock(context.Background(), hsm.PIN(s.PIN))
		}()
		<-ctx.Done()
		for range n {
			_ = pool.Ready()
		}
		pool.Close()
		if err := <-done; err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("Unlock: %v", err)
		}
		if alive := len(*pool.live.Load()); alive != 0 {
			t.Errorf("%d workers after Close", alive)
		}
	}
}
