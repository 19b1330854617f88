package policy

import (
	"math"
	"reflect"
	"testing"
	"time"

	"countersign/protocol"
)

const day = 24 * time.Hour

func TestCumulatedOfDefault(t *testing.T) {
	p := mustParse(t, string(Default()))
	if got := p.Windows(200); !reflect.DeepEqual(got, []time.Duration{day}) {
		t.Errorf("windows of payments: %v", got)
	}
	for _, none := range []protocol.Service{100, 300, 0, 2, 3, 12345} {
		if got := p.Windows(none); got != nil {
			t.Errorf("service %d has windows %v", none, got)
		}
	}
	for _, tc := range []struct {
		spent, amount uint64
		want          protocol.Level
	}{
		{0, 4999, 1},
		{2 * 4999, 4999, 1},
		{10000, 4999, 1}, // 149.99
		{10001, 4999, 2}, // 150.00
		{15000, 0, 2},
		{15000, 1000000, 4}, // the amount asks for more
		{math.MaxUint64, 4999, 2},
	} {
		g, err := p.Level(Request{Service: 200, Amount: eur(tc.amount), Spent: map[time.Duration]uint64{day: tc.spent}})
		if err != nil || g.Level != tc.want {
			t.Errorf("%d after %d: level %d, %v; want %d", tc.amount, tc.spent, g.Level, err, tc.want)
		}
	}
	for _, window := range []time.Duration{time.Hour, 25 * time.Hour} {
		if g, err := p.Level(Request{Service: 200, Amount: eur(1), Spent: map[time.Duration]uint64{window: 20000}}); err != nil || g.Level != 1 {
			t.Errorf("the sum of %s counts for a day: level %d, %v", window, g.Level, err)
		}
	}
}

// TestBounds checks that the bound of a granted level is the sum from which [Policy.Level] asks for
// more, at every level and in every window.
func TestBounds(t *testing.T) {
	p := mustParse(t, `[[service]]
id = 16
name = "pay"
currency = "EUR"
levels = [{ from = "0", level = 1 }]
cumulated = [
  { window = "24h", from = "150", level = 2 },
  { window = "1h", from = "90", level = 2 },
  { window = "24h", from = "500", level = 4 },
]
`)
	if got := p.Windows(16); !reflect.DeepEqual(got, []time.Duration{day, time.Hour}) {
		t.Fatalf("windows %v", got)
	}
	for _, tc := range []struct {
		level protocol.Level
		want  []Bound
	}{
		{1, []Bound{{day, 15000}, {time.Hour, 9000}}},
		{2, []Bound{{day, 50000}, {time.Hour, 0}}},
		{3, []Bound{{day, 50000}, {time.Hour, 0}}},
		{4, []Bound{{day, 0}, {time.Hour, 0}}},
	} {
		g, err := p.Level(Request{Service: 16, Amount: eur(100), Requested: tc.level})
		if err != nil || !reflect.DeepEqual(g.Bounds, tc.want) || g.Level != tc.level {
			t.Fatalf("level %d: %+v, %v", tc.level, g, err)
		}
		for _, b := range g.Bounds {
			if b.Below == 0 {
				continue
			}
			at := func(spent uint64) protocol.Level {
				g, err := p.Level(Request{Service: 16, Amount: eur(100), Requested: tc.level, Spent: map[time.Duration]uint64{b.Window: spent}})
				if err != nil {
					t.Fatal(err)
				}
				return g.Level
			}
			if at(b.Below-101) != tc.level || at(b.Below-100) <= tc.level {
				t.Errorf("level %d in %s: %d below the bound, %d at it", tc.level, b.Window, at(b.Below-101), at(b.Below-100))
			}
		}
	}
}
