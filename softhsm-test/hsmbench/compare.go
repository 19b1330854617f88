package main

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// service is how the pool is set up in a measurement.
type service struct{ workers, sessions, callers int }

// comparison is one aim.
type comparison struct {
	name, what, against string
	aim                 float64
	latency             time.Duration // of each C_Sign, by the fault shim
	operation           string
	service             service
	base                func(context.Context, *stage, comparison, rates) (float64, error)
}

// comparisons: the second one is what the appliance is set up as by default. The last
// one has a session for each worker, for it asks what a process adds: with several,
// two threads of one process may use both cores of a small machine already.
var comparisons = []comparison{
	{
		"latency", "P-256 at 3 ms, 2 workers with 4 sessions", "8 sessions / 3 ms", 0.9, 3 * time.Millisecond,
		"sign-p256",
		service{2, 4, 32},
		func(_ context.Context, _ *stage, c comparison, _ rates) (float64, error) {
			return float64(c.service.workers*c.service.sessions) / c.latency.Seconds(), nil
		},
	},
	{
		"sign", "P-256, 2 workers with 2 sessions", "a C loop with one thread", 0.7, 0,
		"sign-p256",
		service{2, 2, 16},
		func(_ context.Context, _ *stage, _ comparison, r rates) (float64, error) { return r.of("raw", 1) },
	},
	{
		"derive", "ECDH, 2 workers with 1 session", "one worker with 1", 1.5, 0,
		"derive-p256",
		service{2, 1, 16},
		func(ctx context.Context, s *stage, c comparison, _ rates) (float64, error) {
			c.service.workers = 1
			r, err := s.bench(ctx, c)
			if err != nil {
				return 0, err
			}
			return r.of("service", s.setup(c).callers)
		},
	},
}

// result is the median round of a comparison.
type result struct{ service, base, ratio float64 }

func (s *stage) rounds(ctx context.Context, c comparison, n int) (result, error) {
	var all []result
	for range n {
		measured, err := s.bench(ctx, c)
		if err != nil {
			return result{}, err
		}
		base, err := c.base(ctx, s, c, measured)
		if err != nil {
			return result{}, err
		}
		rate, err := measured.of("service", s.setup(c).callers)
		if err != nil {
			return result{}, err
		}
		all = append(all, result{rate, base, rate / base})
	}
	slices.SortFunc(all, func(a, b result) int { return cmp.Compare(a.ratio, b.ratio) })
	return all[len(all)/2], nil
}
