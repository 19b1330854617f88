// Package measure measures a token the way the appliance uses it: many callers, one
// deadline each, through whatever stands before the token.
package measure

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"strconv"
	"sync"
	"time"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
)

// Token is a token with keys made for measuring. Whoever made it removes them, by
// [report.Label].
type Token struct {
	token             hsm.Token
	sign, derive, mac hsm.Key
	peer              *ecdh.PublicKey
}

// New makes the keys.
func New(ctx context.Context, token hsm.Token) (*Token, error) {
	g := &Token{token: token}
	private, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	g.peer = private.PublicKey()
	for i, k := range []struct {
		usage hsm.Usage
		into  *hsm.Key
	}{{hsm.SignP256, &g.sign}, {hsm.DeriveP256, &g.derive}, {hsm.MACKey, &g.mac}} {
		if *k.into, err = token.Generate(ctx, hsm.KeySpec{Label: report.Label + "bench-" + strconv.Itoa(i), Usage: k.usage}); err != nil {
			return nil, fmt.Errorf("making keys to measure with: %w", err)
		}
	}
	return g, nil
}

// digest is what is signed and authenticated, 32 bytes.
var digest = make([]byte, 32)

// signature makes one; it is the one place that knows the contract's words for it.
func (g *Token) signature(ctx context.Context) ([]byte, error) {
	return g.token.Sign(ctx, g.sign.ID, hsm.ES256, digest)
}

// Operation returns one call of an operation of package report.
func (g *Token) Operation(name string) func(context.Context) error {
	switch name {
	case report.Sign:
		return func(ctx context.Context) error { _, err := g.signature(ctx); return err }
	case report.Derive:
		return func(ctx context.Context) error { _, err := g.token.Derive(ctx, g.derive.ID, g.peer); return err }
	default:
		return func(ctx context.Context) error { _, err := g.token.MAC(ctx, g.mac.ID, digest); return err }
	}
}

// kept is how many times of a caller are kept, the last ones.
const kept = 1 << 16

// Measure calls from so many goroutines for a time. The first error ends it. CPU is
// that of this process and of the children it has.
func Measure(ctx context.Context, call func(context.Context) error, callers int, d time.Duration) (report.Stats, error) {
	if err := call(ctx); err != nil { // so that caches are warm
		return report.Stats{}, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	samples := make([]report.Sample, callers)
	var wg sync.WaitGroup
	before, start := cpuTime(), time.Now()
	for i := range samples {
		wg.Go(func() {
			var err error
			if samples[i], err = repeat(ctx, call, start.Add(d)); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	took, used := time.Since(start), cpuTime()-before
	stats := report.NewStats(samples, took)
	stats.CPU = report.Each(used, report.Calls(samples))
	return stats, context.Cause(ctx)
}

func repeat(ctx context.Context, call func(context.Context) error, end time.Time) (s report.Sample, err error) {
	s.Each = make([]time.Duration, 0, 1024)
	for last := time.Now(); last.Before(end); {
		if err := call(ctx); err != nil {
			return s, err
		}
		now := time.Now()
		if len(s.Each) < kept {
			s.Each = append(s.Each, now.Sub(last))
		} else {
			s.Each[s.Calls%kept] = now.Sub(last)
		}
		last = now
		s.Calls++
	}
	return s, nil
}
