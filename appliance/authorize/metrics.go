package authorize

import (
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// codeNone is the label of a request that was not refused.
const codeNone = "none"

// metrics are the counters of the service. Labels are the words of the codes of PROTOCOL.md §4 and of results, closed
// sets; every series is there from the start.
type metrics struct {
	applies        *prometheus.CounterVec
	authorizations *prometheus.CounterVec
	repeats        prometheus.Counter
	damaged        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_applies_total", Help: "M1 answered, by the code sent to the phone.",
		}, []string{"code"}),
		authorizations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_authorizations_total", Help: "M3 answered, by result and by the code sent to the phone.",
		}, []string{"result", "code"}),
		repeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_repeats_total", Help: "M3 answered from the stored outcome.",
		}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_damaged_verifiers_total", Help: "Password checks for which the stored verifier did not unwrap.",
		}),
	}
	m.begin()
	if reg != nil {
		reg.MustRegister(m.applies, m.authorizations, m.repeats, m.damaged)
	}
	return m
}

// begin sets every series to 0.
func (m *metrics) begin() {
	denied, dryRun, status := protocol.ResultDenied.String(), audit.ResultDryRun, audit.ResultStatus
	for _, result := range []string{protocol.ResultApproved.String(), dryRun, status} {
		m.authorizations.WithLabelValues(result, codeNone)
	}
	m.authorizations.WithLabelValues(protocol.ResultPending.String(), protocol.CodePending.String())
	m.authorizations.WithLabelValues(protocol.ResultRetry.String(), protocol.CodePassword.String())
	m.applies.WithLabelValues(codeNone)
	for _, code := range protocol.Codes() {
		m.applies.WithLabelValues(code.String())
		for _, result := range []string{denied, dryRun, status} {
			m.authorizations.WithLabelValues(result, code.String())
		}
	}
}

// label returns the label of a code, or of no code.
func label(code protocol.Code) string {
	if code == 0 {
		return codeNone
	}
	return code.String()
}

func (m *metrics) applied(code protocol.Code) { m.applies.WithLabelValues(label(code)).Inc() }

// settled counts the answer to a request for a service.
func (m *metrics) settled(service protocol.Service, out store.Outcome) {
	if out.Replayed {
		m.repeats.Inc()
		return
	}
	m.authorizations.WithLabelValues(audit.ResultOf(service, out.Result), label(out.Reason)).Inc()
}
