package api

import "github.com/prometheus/client_golang/prometheus"

// Why a connection closed: values of a label.
const (
	closedEnd         = "end"         // by the peer, or after an idle time
	closedFull        = "full"        // for a new connection
	closedHandshake   = "handshake"   // the handshake failed or took too long
	closedAge         = "age"         // at the end of its life
	closedCertificate = "certificate" // its certificate is no longer in force
)

// Metrics count the connections of the API.
type Metrics struct {
	open   *prometheus.GaugeVec
	closed *prometheus.CounterVec
	busy   *prometheus.CounterVec
}

// NewMetrics returns registered metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "countersign_api_connections", Help: "Open connections of the API, without and with a device certificate.",
		}, []string{"kind"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_api_connections_closed_total", Help: "Closed connections of the API, by reason.",
		}, []string{"reason"}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_api_busy_total", Help: "Requests answered busy (429), by the bound that they met.",
		}, []string{"bound"}),
	}
	m.count(0, 0)
	for _, reason := range []string{closedEnd, closedFull, closedHandshake, closedAge, closedCertificate} {
		m.closed.WithLabelValues(reason)
	}
	for _, bound := range []string{boundAll, boundDevice, boundStranger} {
		m.busy.WithLabelValues(bound)
	}
	r.MustRegister(m.open, m.closed, m.busy)
	return m
}

func (m *Metrics) count(strangers, devices int) {
	m.open.WithLabelValues("stranger").Set(float64(strangers))
	m.open.WithLabelValues("device").Set(float64(devices))
}
