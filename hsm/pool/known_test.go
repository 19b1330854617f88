package pool

import (
	"crypto/sha256"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"countersign/hsm"
)

// Every worker uses a key whose public half is not on the token, once a caller knows the public key,
// also a worker that is started later.
func TestKnow(t *testing.T) {
	r := newRig(t, nil)
	keys := map[hsm.Usage]hsm.Key{}
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.DeriveP256} {
		k, err := r.pool.Generate(t.Context(), hsm.KeySpec{Label: usage.String() + "@1", Usage: usage})
		if err != nil {
			t.Fatal(err)
		}
		keys[usage] = k
	}
	r.pool.Close()
	for _, k := range keys {
		r.hsm.Tool(t, "--delete-object", "--type", "pubkey", "--label", k.Label)
	}
	r.cfg.PIN = hsm.PIN(r.hsm.PIN)
	again, err := Open(t.Context(), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	r.pool = again
	if listed, err := again.Keys(t.Context()); err != nil || len(listed) != 0 {
		t.Errorf("%v, %v; want no keys yet", listed, err)
	}
	if err := again.Know(t.Context(), [][]byte{keys[hsm.SignP256].Public, keys[hsm.DeriveP256].Public}); err != nil {
		t.Fatal(err)
	}
	listed, err := again.Keys(t.Context())
	if err != nil || len(listed) != 2 {
		t.Errorf("%v, %v; want both keys", listed, err)
	}
	r.useOnEach(t, keys[hsm.SignP256].ID)
	before := r.pids()
	for _, pid := range before {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "two other workers", 10*time.Second, func() bool {
		now := r.pids()
		return len(now) == 2 && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(before, pid) })
	})
	r.useOnEach(t, keys[hsm.SignP256].ID)
	if err := again.Know(t.Context(), [][]byte{{1, 2, 3}}); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("Know of garbage: %v, want ErrInput", err)
	}
}

// useOnEach signs with a key on each worker.
func (r *rig) useOnEach(t *testing.T, id hsm.KeyID) {
	t.Helper()
	digest := sha256.Sum256(nil)
	for _, c := range *r.pool.live.Load() {
		k, ok := r.pool.keys.find(id)
		if !ok {
			t.Fatalf("key %s is not known", id)
		}
		if err := (canary{c.canaries, time.Second, time.Second}).testSign(t.Context(), k); err != nil {
			t.Errorf("worker %d: %v", c.pid(), err)
		}
	}
	if _, err := r.pool.Sign(t.Context(), id, hsm.ES256, digest[:]); err != nil {
		t.Error(err)
	}
}
