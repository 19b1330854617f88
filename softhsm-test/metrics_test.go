package softhsmtest

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/relay"
)

// TestMetricsAreDocumented: docs/OPERATE.md names every metric of both daemons, and no metric that they do not have.
func TestMetricsAreDocumented(t *testing.T) {
	b := newBench(t)
	res := must[*http.Response](t)(http.Get(b.Ops + "/metrics"))
	text := must[[]byte](t)(io.ReadAll(res.Body))
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# HELP (countersign_\w+)`).FindAllStringSubmatch(string(text), -1) {
		have[m[1]] = true
	}
	registry := prometheus.NewRegistry()
	relay.NewMetrics(registry)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		have[family.GetName()] = true
	}
	_, table, found := strings.Cut(string(must[[]byte](t)(os.ReadFile("../docs/OPERATE.md"))), "\n## Metrics\n")
	table, _, _ = strings.Cut(table, "\n## ")
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(countersign_\\w+)").FindAllStringSubmatch(table, -1) {
		documented[m[1]] = true
	}
	if !found || len(have) < 20 {
		t.Fatalf("docs/OPERATE.md has the chapter: %v; the daemons have %d metrics", found, len(have))
	}
	for name := range have {
		if !documented[name] {
			t.Errorf("docs/OPERATE.md does not name %s", name)
		}
	}
	for name := range documented {
		if !have[name] {
			t.Errorf("docs/OPERATE.md names %s, which no daemon has", name)
		}
	}
}
