// Package measure measures a token as the appliance uses it: many callers, each with a
// deadline.
package measure

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
)

// Token is a token with keys for measuring. The caller removes them, by [report.Label].
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

// digest is the input of signatures and MACs, 32 bytes.
var digest = make([]byte, 32)

// signature makes one signature.
func (g *Token) signature(ctx context.Context) ([]byte, error) {
	return g.token.Sign(ctx, g.sign.ID, hsm.ES256, digest)
}

// decap does one key agreement, as an authorization does.
func (g *Token) decap(ctx context.Context) error {
	kems := g.token.KEMs()
	if len(kems) == 0 {
		return fmt.Errorf("the module can do no KEM: %w", hsm.ErrUnsupported)
	}
	_, err := g.token.Decap(ctx, g.derive.ID, kems[0], g.peer)
	return err
}

// Operation returns one call of an operation of package report.
func (g *Token) Operation(name string) func(context.Context) error {
	switch name {
	case report.Sign:
		return func(ctx context.Context) error { _, err := g.signature(ctx); return err }
	case report.Derive:
		return func(ctx context.Context) error { return g.decap(ctx) }
	default:
		return func(ctx context.Context) error { _, err := g.token.MAC(ctx, g.mac.ID, digest); return err }
	}
}

// kept is how many times of a caller are kept, the last ones.
const kept = 1 << 16

// Measure calls from a number of goroutines for a time, and stops at the first error. It
// counts the CPU time of this process and its children.
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

// errSignature: the token signed wrongly.
var errSignature = errors.New("a signature does not verify")

// Verified returns a call that makes a signature and verifies it, and one that only
// verifies.
func (g *Token) Verified(ctx context.Context) (both, check func(context.Context) error, err error) {
	parsed, err := x509.ParsePKIXPublicKey(g.sign.Public)
	if err != nil {
		return nil, nil, err
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return nil, nil, errSignature
	}
	verify := func(sig []byte) error {
		if !ecdsa.Verify(public, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
			return errSignature
		}
		return nil
	}
	one, err := g.signature(ctx)
	if err != nil {
		return nil, nil, err
	}
	both = func(ctx context.Context) error {
		sig, err := g.signature(ctx)
		if err != nil {
			return err
		}
		return verify(sig)
	}
	return both, func(context.Context) error { return verify(one) }, nil
}

// cpuTime returns the time that this process and its running children, the workers, have
// used. getrusage counts children only after they ended, hence the clock of each
// (clock_getcpuclockid(3)).
func cpuTime() (sum time.Duration) {
	for _, pid := range append(children(), os.Getpid()) {
		sum += cpuOf(pid)
	}
	return sum
}

func cpuOf(pid int) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|2), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// children returns the child processes of every thread of this process, none if the kernel
// does not list them.
func children() (pids []int) {
	lists, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is sound
	for _, path := range lists {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for text := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(text); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
