package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/keylife"
	"countersign/hsm"
)

// Times of the heartbeat.
const (
	beatEvery = 2 * time.Second
	beatLimit = 2 * time.Second // of each half
	beatStale = 3 * beatEvery   // age at which a good beat proves nothing
)

// ErrHeartbeat means that the last use of store or token failed, or that none succeeded for some seconds.
var ErrHeartbeat = errors.New("heartbeat")

// heartbeat uses store and token at an interval, as requests do: one durable write, and one signature, key agreement and
// MAC with the keys in use. Readiness is its last result, so a probe costs nothing.
type heartbeat struct {
	store, token half
	failures     *prometheus.CounterVec // by part
	last         *prometheus.GaugeVec   // time of the last success, by part
}

// half is the last result of one part.
type half struct {
	mu   sync.Mutex
	good time.Time // with a monotonic reading
	took time.Duration
	err  error // of the last beat
}

func newHeartbeat(reg prometheus.Registerer) *heartbeat {
	h := &heartbeat{
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_heartbeat_failures_total", Help: "Failed heartbeats, by part: store or hsm.",
		}, []string{"part"}),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "countersign_heartbeat_success_timestamp_seconds", Help: "Time of the last good heartbeat, by part.",
		}, []string{"part"}),
	}
	for _, part := range []string{partStore, partToken} {
		h.failures.WithLabelValues(part)
		h.last.WithLabelValues(part)
	}
	if reg != nil {
		reg.MustRegister(h.failures, h.last)
	}
	return h
}

const (
	partStore = "store"
	partToken = "hsm"
)

// beatUntil beats until ctx ends. A part that hangs does not hold up the other.
func (a *Appliance) beatUntil(ctx context.Context) {
	var parts sync.WaitGroup
	for _, p := range []struct {
		name string
		half *half
		use  func(context.Context) error
	}{
		{partStore, &a.heart.store, func(ctx context.Context) error { return a.store.Pulse(ctx, a.now()) }},
		{partToken, &a.heart.token, func(ctx context.Context) error { return keylife.TestInUse(ctx, a.keyring, a.now()) }},
	} {
		parts.Go(func() {
			ticker := time.NewTicker(beatEvery)
			defer ticker.Stop()
			for ctx.Err() == nil {
				a.beat(ctx, p.half, p.use)
				a.heart.count(p.name, p.half)
				select {
				case <-ticker.C:
				case <-ctx.Done():
				}
			}
		})
	}
	parts.Wait()
}

func (a *Appliance) beat(ctx context.Context, h *half, use func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, beatLimit)
	defer cancel()
	start := time.Now()
	err := use(ctx)
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case errors.Is(err, hsm.ErrBusy): // a busy token works, so only the age of the last good beat decides
	case err != nil:
		h.err = err
	default:
		h.good, h.took, h.err = now, now.Sub(start), nil
	}
}

func (h *heartbeat) count(part string, p *half) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		h.failures.WithLabelValues(part).Inc()
	} else if !p.good.IsZero() {
		h.last.WithLabelValues(part).Set(float64(p.good.UnixMilli()) / 1000)
	}
}

// state returns the duration of the last good beat. The error wraps [ErrHeartbeat] if the last beat failed, or the last
// good one is too old.
func (h *half) state() (time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	age := time.Since(h.good)
	switch {
	case h.err != nil:
		return h.took, fmt.Errorf("%w: %w", ErrHeartbeat, h.err)
	case h.good.IsZero():
		return 0, fmt.Errorf("%w: the first one has not ended", ErrHeartbeat)
	case age > beatStale:
		return h.took, fmt.Errorf("%w: the last success was %v ago", ErrHeartbeat, age.Round(time.Second))
	}
	return h.took, nil
}

// CheckStore returns an error if the last durable write failed, or none succeeded for some seconds.
func (a *Appliance) CheckStore(context.Context) error {
	_, err := a.heart.store.state()
	return err
}

// CheckToken returns an error if the last use of the keys failed, or none succeeded for some seconds.
func (a *Appliance) CheckToken(context.Context) error {
	_, err := a.heart.token.state()
	return err
}
