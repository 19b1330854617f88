package shim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/pool"
)

// TestHiddenKeys: behind a module that shows a process only the objects that were there when it began,
// every worker uses a key that another one made.
func TestHiddenKeys(t *testing.T) {
	b := newBed(t)
	mask := filepath.Join(t.TempDir(), "hidden.mask")
	if err := os.WriteFile(mask, []byte("hidden NEVER=SET # as nShield's by default\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.hsm.Setenv(t)
	for _, assignment := range append(b.Env(), "FAULTSHIM_MASK="+mask) {
		name, value, _ := strings.Cut(assignment, "=")
		t.Setenv(name, value)
	}
	p, err := pool.Open(t.Context(), pool.Config{
		Binary: hsmtest.Worker(t), Module: b.Module, TokenLabel: b.hsm.Label, PIN: hsm.PIN(b.hsm.PIN), Workers: 2, Sessions: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	for _, usage := range []hsm.Usage{hsm.MACKey, hsm.SignP256} {
		k := b.makes(p, usage)
		want := []byte(nil)
		for range 20 { // side by side, so that no worker is left out
			results := make(chan []byte, 8)
			for range cap(results) {
				go func() {
					var out []byte
					var err error
					if usage == hsm.MACKey {
						out, err = p.MAC(t.Context(), k.ID, []byte("x"))
					} else {
						_, err = p.Sign(t.Context(), k.ID, hsm.ES256, make([]byte, 32))
					}
					if err != nil {
						t.Errorf("%s: %v", usage, err)
					}
					results <- out
				}()
			}
			for range cap(results) {
				if got := <-results; want == nil {
					want = got
				} else if string(got) != string(want) {
					t.Errorf("%s: %x, want %x", usage, got, want)
				}
			}
		}
	}
}
