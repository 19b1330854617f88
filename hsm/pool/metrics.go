package pool

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// metrics are the collectors of this package.
type metrics struct {
	alive, available, hostCheck                       prometheus.Gauge
	restarts, retries, garbled, quarantines, canaries prometheus.Counter
	queue                                             []prometheus.Observer // by operation
	call                                              []prometheus.Observer
	failed                                            []prometheus.Counter
}

// buckets from 50 µs, a fast software token, to 3.3 s, beyond the deadline.
var buckets = prometheus.ExponentialBuckets(50e-6, 2, 17)

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		alive: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "countersign_hsm_workers", Help: "Worker processes with an open token.",
		}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_hsm_worker_restarts_total", Help: "Workers started in place of a lost one.",
		}),
	}
	m.available = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "countersign_hsm_available", Help: "1 while calls are let through to the HSM, 0 while they are refused at once.",
	})
	m.hostCheck = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "countersign_hsm_password_check_on_host", Help: "1 while workers may check passwords in their memory, 0 while only the token checks them.",
	})
	counters := []prometheus.Collector{}
	for c, name := range map[*prometheus.Counter][2]string{
		&m.retries:     {"retries_total", "HSM operations that were tried again on another worker."},
		&m.garbled:     {"garbled_total", "Wrong answers of the HSM, none of which was released."},
		&m.quarantines: {"quarantines_total", "Workers put out of service for wrong answers in a row."},
		&m.canaries:    {"canary_failures_total", "Canaries that failed."},
	} {
		*c = prometheus.NewCounter(prometheus.CounterOpts{Name: "countersign_hsm_" + name[0], Help: name[1]})
		counters = append(counters, *c)
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "countersign_hsm_seconds", Buckets: buckets,
		Help: "Time of an HSM operation: call inside the token, queue on the way there and back.",
	}, []string{"op", "part"})
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "countersign_hsm_failures_total", Help: "HSM operations that failed for want of the HSM.",
	}, []string{"op"})
	n := wire.Ops() + 1
	m.queue, m.call, m.failed = make([]prometheus.Observer, n), make([]prometheus.Observer, n), make([]prometheus.Counter, n)
	for op := wire.Op(1); op < n; op++ {
		m.queue[op] = seconds.WithLabelValues(op.String(), "queue")
		m.call[op] = seconds.WithLabelValues(op.String(), "call")
		m.failed[op] = failures.WithLabelValues(op.String())
	}
	if r != nil {
		r.MustRegister(append(counters, m.alive, m.available, m.hostCheck, m.restarts, seconds, failures)...)
	}
	return m
}

// observe counts one operation that took total, and call inside the token.
func (m *metrics) observe(op wire.Op, total, call time.Duration, err error) {
	if err == nil {
		m.call[op].Observe(call.Seconds())
		m.queue[op].Observe(max(total-call, 0).Seconds())
	}
	if errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrPIN) || errors.Is(err, hsm.ErrBusy) {
		m.failed[op].Inc()
	}
}
