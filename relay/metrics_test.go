package relay

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/protocol"
)

// TestEverySeriesFromTheStart: a series that appears with its first event hides that event from a rate.
func TestEverySeriesFromTheStart(t *testing.T) {
	registry := prometheus.NewRegistry()
	NewMetrics(registry)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]int{}
	for _, family := range families {
		series[family.GetName()] = len(family.GetMetric())
	}
	for name, want := range map[string]int{
		"countersign_relay_messages_total": 2, "countersign_relay_decisions_total": 6, "countersign_relay_acts_total": 4,
		"countersign_relay_link_errors_total": len(protocol.Codes()), "countersign_relay_links": 1,
	} {
		if series[name] != want {
			t.Errorf("%s has %d series, want %d", name, series[name], want)
		}
	}
}
