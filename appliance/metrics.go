package appliance

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/store"
	"countersign/protocol"
)

// metrics are the counters of the service. Labels are codes of PROTOCOL.md §4, a
// closed set; "0" is success.
type metrics struct {
	applies        *prometheus.CounterVec
	authorizations *prometheus.CounterVec
	repeats        prometheus.Counter
	forged         prometheus.Counter
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
			Name: "countersign_forged_records_total", Help: "Client rows whose record MAC did not fit.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.applies, m.authorizations, m.repeats, m.forged)
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
