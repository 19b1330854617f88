package clock

import (
	"testing"
	"time"
)

// The clock follows the system's clock forward, and does not go back with it.
func TestSteady(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	wall, passed := start, Boot{ID: [4]byte{1}, At: time.Hour}
	s := newSteady(func() Boot { return passed }, func() time.Time { return wall })
	for _, c := range []struct {
		name              string
		passes, wall      time.Duration // from the start
		want, wantsBehind time.Duration
	}{
		{"both go on", time.Minute, time.Minute, time.Minute, 0},
		{"set forward", time.Minute, time.Hour, time.Hour, 0},
		{"and corrected", 2 * time.Minute, 2 * time.Minute, 2 * time.Minute, 0},
		{"set back", 3 * time.Minute, time.Minute, 3 * time.Minute, 2 * time.Minute},
		{"set back before the start", 4 * time.Minute, -time.Hour, 4 * time.Minute, time.Hour + 4*time.Minute},
	} {
		wall, passed.At = start.Add(c.wall), time.Hour+c.passes
		if got := s.Now().Sub(start); got != c.want || s.Behind() != c.wantsBehind {
			t.Errorf("%s: %v, behind %v; want %v, %v", c.name, got, s.Behind(), c.want, c.wantsBehind)
		}
	}
	passed.ID = [4]byte{2} // no host does this while a process runs
	if s.Now() != wall || s.Behind() != 0 {
		t.Errorf("after another boot: %v, behind %v", s.Now(), s.Behind())
	}
}

func TestNow(t *testing.T) {
	first := Now()
	second := Now()
	if passed, ok := second.Since(first); !ok || passed < 0 || passed > time.Minute || first.At <= 0 {
		t.Errorf("%v, then %v", first, second)
	}
	if _, ok := (Boot{}).Since(Boot{}); ok {
		t.Error("unknown boots can be compared")
	}
	if New().Now().IsZero() {
		t.Error("no time")
	}
}
