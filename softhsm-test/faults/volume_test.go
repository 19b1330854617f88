package faults

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/pool"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/shim"
)

const (
	badSignatures = 10_000 // injected in all
	signers       = 8
)

// signing is a pool of real workers that is asked for signatures, which are verified
// here.
type signing struct {
	pool *pool.Pool
	shim shim.Shim
	id   hsm.KeyID
	key  *ecdsa.PublicKey

	good, refused, released atomic.Int64
}

// volume asks a pool of real workers, which is the harness's own, for signatures until
// so many bad ones were made.
func volume(ctx context.Context, s *stage) {
	g := s.newSigning(ctx)
	var rules []string
	for i, action := range badActions {
		// No two at once, and hardly three in a row from one worker: that is another check.
		rules = append(rules, fmt.Sprintf("C_Sign %s size=64 every=%d", action, []int{47, 53, 59, 61, 67}[i]))
	}
	harness.Do(g.shim.Set(rules...))
	begun := time.Now()
	injected := g.run(ctx)
	took := time.Since(begun)
	s.Check(injected >= badSignatures, "bad signatures made: %d", injected)
	s.Check(g.released.Load() == 0, "released by the pool of workers: %d bad, %d good, %d refused, in %v",
		g.released.Load(), g.good.Load(), g.refused.Load(), took.Round(time.Millisecond))
}

// newSigning opens the pool on the appliance's token. Worker processes inherit the environment
// of this process.
func (s *stage) newSigning(ctx context.Context) *signing {
	g := &signing{shim: s.poolShim()}
	for _, assignment := range append(g.shim.Env(), "SOFTHSM2_CONF="+filepath.Join(s.state(), "softhsm2.conf")) {
		name, value, _ := strings.Cut(assignment, "=")
		s.T().Setenv(name, value)
	}
	g.pool = harness.Must(pool.Open(ctx, pool.Config{
		Binary: s.Config.Bin.Path("hsm-worker"), Module: s.Module, TokenLabel: "countersign-dev",
		PIN: hsm.PIN(bytes.TrimSpace(harness.Must(os.ReadFile(s.pinFile())))), Logger: hclog.NewNullLogger(),
	}))
	s.T().Cleanup(func() { g.pool.Close() })
	g.generate(ctx)
	return g
}

func (g *signing) generate(ctx context.Context) {
	key := harness.Must(g.pool.Generate(ctx, hsm.KeySpec{Label: "volume@1", Usage: hsm.SignP256}))
	g.id = key.ID
	g.key = harness.Must(x509.ParsePKIXPublicKey(key.Public)).(*ecdsa.PublicKey)
}

// run signs until enough bad signatures were injected, and gives how many.
func (g *signing) run(ctx context.Context) (injected uint64) {
	var all sync.WaitGroup
	var enough atomic.Bool
	for range signers {
		all.Go(func() {
			for ctx.Err() == nil && !enough.Load() {
				g.sign(ctx)
			}
		})
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for ctx.Err() == nil && err == nil && injected < badSignatures {
		<-tick.C
		var counts shim.Counts
		counts, err = g.shim.Counts()
		injected = counts["C_Sign"].Faults
	}
	enough.Store(true)
	all.Wait()
	harness.Do(err)
	return injected
}

func (g *signing) sign(ctx context.Context) {
	var digest [32]byte
	_, _ = rand.Read(digest[:]) // never fails, crypto/rand
	sig, err := g.pool.Sign(ctx, g.id, hsm.ES256, digest[:])
	switch {
	case err != nil:
		g.refused.Add(1)
		pauseAfterRefusal(ctx)
	case len(sig) == 64 && ecdsa.Verify(g.key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])):
		g.good.Add(1)
	default:
		g.released.Add(1)
	}
}

// pauseAfterRefusal leaves the processor to the workers that are being started.
func pauseAfterRefusal(ctx context.Context) {
	select {
	case <-time.After(2 * time.Millisecond):
	case <-ctx.Done():
	}
}
