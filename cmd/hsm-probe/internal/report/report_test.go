package report

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func curve(op string, cpu, mean float64, rates ...float64) Curve {
	c := Curve{Operation: op}
	for i, r := range rates {
		c.Points = append(c.Points, Point{1 << i, Stats{Rate: r, P50: mean, CPU: cpu, P99: 2 * mean}})
	}
	c.Knee = Knee(c.Points)
	return c
}

func TestKnee(t *testing.T) {
	for want, rates := range map[int][]float64{
		0: nil, 1: {100, 101, 99}, 2: {50, 95, 100, 98}, 8: {1, 2, 4, 8, 8.1}, 4: {10, 20, 35, 36, 38},
	} {
		if got := curve("sign", 1, 1, rates...).Knee; got != want {
			t.Errorf("%v: knee %d, want %d", rates, got, want)
		}
	}
}

func TestRecommend(t *testing.T) {
	for name, c := range map[string]struct {
		curves            []Curve
		machine           Machine
		workers, sessions int
		timeout, why      string
	}{
		"local, all parallel": {
			[]Curve{curve("sign", 50, 50, 100, 190, 195)}, Machine{Cores: 2}, 2, 2, "2s", "a session for each",
		},
		"local, one serial": {
			[]Curve{curve("sign", 50, 50, 100, 190), curve("derive", 150, 150, 60, 61)}, Machine{Cores: 4}, 4, 2, "2s", "one derive at a time",
		},
		"network": {
			[]Curve{curve("sign", 20, 3000, 300, 600, 1200, 2400, 2500)}, Machine{Cores: 4}, 2, 4, "2s", "8 sessions over all workers",
		},
		"network with a limit": {
			[]Curve{curve("sign", 20, 3000, 300, 600, 1200, 2400, 4800)}, Machine{Cores: 4, MaxSessions: 16}, 2, 5, "2s", "limit of 16",
		},
		"slow": {
			[]Curve{curve("sign", 20, 300_000, 3, 6)}, Machine{Cores: 4}, 2, 1, "12s", "2 sessions",
		},
	} {
		s := Recommend(c.curves, c.machine)
		if s.Workers != c.workers || s.Sessions != c.sessions || s.Timeout != c.timeout || !strings.Contains(s.Why, c.why) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s := Recommend(nil, Machine{Cores: 2}); s != nil {
		t.Errorf("of nothing: %+v", s)
	}
}

func TestStats(t *testing.T) {
	var each []time.Duration
	for i := range 100 {
		each = append(each, time.Duration(100-i)*time.Microsecond)
	}
	s := NewStats([]Sample{{Calls: 1000, Each: each[:50]}, {Calls: 500, Each: each[50:]}}, 3*time.Second)
	if want := (Stats{Rate: 500, Mean: 50.5, P50: 51, P90: 91, P99: 100, Max: 100}); s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s := NewStats(nil, time.Second); s != (Stats{}) {
		t.Errorf("of nothing: %+v", s)
	}
}

func TestMissing(t *testing.T) {
	all := []Capability{
		{Name: "a", Mechanism: "CKM_A", Verdict: Works, Required: true, UsedFor: "x"},
		{Name: "b", Mechanism: "CKM_B", Verdict: Fails, Required: true, UsedFor: "y"},
		{Name: "c", Mechanism: "CKM_C", Verdict: NotListed, UsedFor: "z"},
	}
	if got := Missing(all); !slices.Equal(got, []string{"CKM_B (b), needed for y"}) {
		t.Errorf("%q", got)
	}
}
