package appliance

import (
	"context"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// metrics are the counters of the service. Labels are codes of PROTOCOL.md §4, a
// closed set; "0" is success.
type metrics struct {
	applies        *prometheus.CounterVec
	authorizations *prometheus.CounterVec
	repeats        prometheus.Counter
	forged         prometheus.Counter
	strange        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_applies_total", Help: "M1 answered, by the code told to the phone.",
		}, []string{"code"}),
		authorizations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_authorizations_total", Help: "M3 answered, by result and reason.",
		}, []string{"result", "code"}),
		repeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_repeats_total", Help: "M3 answered from the stored outcome.",
		}),
		forged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_forged_records_total", Help: "Records that did not fit their seals, each time one was read.",
		}),
		strange: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "countersign_strange_keys", Help: "Keys on the token that were unknown to the registry, or not as it has them, at the last comparison.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.applies, m.authorizations, m.repeats, m.forged, m.strange)
	}
	return m
}

func (m *metrics) applied(code protocol.Code) {
	m.applies.WithLabelValues(strconv.Itoa(int(code))).Inc()
}

func (m *metrics) settled(out store.Outcome) {
	if out.Replayed {
		m.repeats.Inc()
		return
	}
	m.authorizations.WithLabelValues(strconv.Itoa(int(out.Result)), strconv.Itoa(int(out.Reason))).Inc()
}

// failures counts countersignatures that failed before a client signature
// verified. Anybody can make those, so they are one audit record per device and
// minute, never one each.
type failures struct {
	mu     sync.Mutex
	counts map[protocol.DeviceID]map[protocol.Code]uint64 // guarded by mu
}

func (f *failures) count(device protocol.DeviceID, code protocol.Code) { f.add(device, code, 1) }

func (f *failures) add(device protocol.DeviceID, code protocol.Code, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[protocol.DeviceID]map[protocol.Code]uint64{}
	}
	if f.counts[device] == nil {
		f.counts[device] = map[protocol.Code]uint64{}
	}
	f.counts[device][code] += n
}

func (f *failures) take() map[protocol.DeviceID]map[protocol.Code]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := f.counts
	f.counts = nil
	return counts
}

// flushFailures appends the counts; what the store does not take is kept for the
// next minute.
func (a *Appliance) flushFailures(ctx context.Context) {
	for device, codes := range a.failures.take() {
		fields := map[string]any{}
		for code, n := range codes {
			fields[code.String()] = n
		}
		if err := a.store.Append(ctx, audit.NewRecord(audit.KindFailures, "device/"+device.String(), fields)); err != nil {
			a.log.Error("failure counts could not be written to the audit", "device", device.String(), "error", err)
			for code, n := range codes {
				a.failures.add(device, code, n)
			}
		}
	}
}
