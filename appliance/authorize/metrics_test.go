package authorize_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// series returns the values of a metric by its labels, joined with "/".
func series(t *testing.T, from prometheus.Gatherer, name string) map[string]float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			values[strings.Join(labels, "/")] = m.GetCounter().GetValue()
		}
	}
	return values
}

// TestMetrics: every series is there before its first event, and none appears later. Labels are words. Dry runs
// and status questions decide nothing, and have their own results.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	b := appliancetest.New(t)
	b.Restart(func(c *appliance.Config) { c.Metrics = registry })
	const name = "countersign_authorizations_total" // labels in the order of their names: code, result
	before, applies := series(t, registry, name), series(t, registry, "countersign_applies_total")
	for labels, value := range before {
		if value != 0 || strings.ContainsAny(labels, "0123456789") {
			t.Errorf("%s{%s} begins at %v", name, labels, value)
		}
	}
	alice := b.EnrolPhone("alice")
	s := alice.Challenge(door, nil)
	expect(t, s.Approve(), protocol.ResultApproved, 0)
	s = alice.Challenge(door, nil)
	expect(t, s.Must(s.M3(protocol.Refuse)), protocol.ResultDenied, protocol.CodeUserRefused)
	for service, asked := range map[protocol.Service]*protocol.Serial{protocol.ServiceDryRun: nil, protocol.ServiceStatus: &s.P1.Serial} {
		for _, verdict := range []protocol.Verdict{protocol.Approve, protocol.Refuse} {
			p1 := alice.P1(service)
			p1.Asked = asked
			s, err := alice.Apply(p1, deviceapi.Order{Services: []protocol.Service{door, service}})
			if err != nil {
				t.Fatal(err)
			}
			s.Must(s.M3(verdict))
		}
	}
	if _, err := alice.Apply(alice.P1(999), deviceapi.Order{Services: []protocol.Service{999}}); err != nil {
		t.Fatal(err)
	}
	after := series(t, registry, name)
	for labels, want := range map[string]float64{
		"none/approved": 1, "user refused/denied": 1, "none/dry run": 1, "user refused/dry run": 1, "none/status": 1, "user refused/status": 1,
		"awaiting second approver/pending": 0, "bad password/retry": 0,
	} {
		if got, there := after[labels]; got != want || !there {
			t.Errorf("%s{%s} = %v, want %v", name, labels, got, want)
		}
	}
	if got := series(t, registry, "countersign_applies_total"); got["none"] != 6 || got["service not allowed"] != 1 || len(got) != len(applies) {
		t.Errorf("applies %v", got)
	}
	if len(after) != len(before) || len(after) < 3*len(protocol.Codes()) {
		t.Errorf("%d series became %d", len(before), len(after))
	}
}
