package policy

import (
	"fmt"
	"math"
	"slices"
	"time"

	"countersign/protocol"
)

// cumulated is a level by cumulated amount: a request needs it if its amount, added to the sum of the
// client's approvals of the service within the window, reaches from.
type cumulated struct {
	window time.Duration // whole seconds, 1 minute to 31 days
	from   uint64        // minor units, not 0
	level  protocol.Level
}

// Windows returns the windows whose sums [Request] needs for a service, without repeats.
func (p *Policy) Windows(service protocol.Service) []time.Duration {
	return p.services[service].windows()
}

func (s service) windows() (windows []time.Duration) {
	for _, c := range s.sums {
		if !slices.Contains(windows, c.window) {
			windows = append(windows, c.window)
		}
	}
	return windows
}

// Bound is how far the cumulated amount of a window may rise before a request needs a higher level
// than the one granted.
type Bound struct {
	Window time.Duration
	Below  uint64 // the sum, this request included, stays below it; minor units; 0 is no bound
}

// cumulatedLevel returns the highest level that the sums require, or 0.
func (s service) cumulatedLevel(minor uint64, spent map[time.Duration]uint64) (level protocol.Level) {
	for _, c := range s.sums {
		if total(spent[c.window], minor) >= c.from {
			level = max(level, c.level)
		}
	}
	return level
}

func total(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// bounds returns the bound of each window at a level. It includes windows without a bound, because every
// approval is added to their sums.
func (s service) bounds(level protocol.Level) (bounds []Bound) {
	for _, window := range s.windows() {
		b := Bound{Window: window}
		for _, c := range s.sums {
			if c.window == window && c.level > level && (b.Below == 0 || c.from < b.Below) {
				b.Below = c.from
			}
		}
		bounds = append(bounds, b)
	}
	return bounds
}

// maxCumulated bounds the windows of one service, each of which takes room in the record of every
// client.
const maxCumulated = 4

// cumulated checks the levels by cumulated amount: in each window amounts and levels rise.
func (c *checker) cumulated(r rawService, s service, m money) (sums []cumulated) {
	if len(r.Cumulated) > 0 && !m.given {
		c.fail("cumulated needs the service to have a currency")
		return nil
	}
	before := map[time.Duration]cumulated{}
	for i, raw := range r.Cumulated {
		where := fmt.Sprintf("cumulated, entry %d: ", i+1)
		one, sound := c.cumulatedEntry(raw, where, m)
		if !sound {
			continue // the problem is reported
		}
		last, repeated := before[one.window]
		before[one.window] = one
		switch lowest := s.lowest(); {
		case lowest != 0 && one.level <= lowest:
			c.fail("%slevel %d: every amount takes %d already", where, one.level, lowest)
		case repeated && one.from <= last.from:
			c.fail("%sfrom %s: must be above the entry before for this window", where, raw.From)
		case repeated && one.level <= last.level:
			c.fail("%slevel %d: must be above the %d of a smaller sum in this window", where, one.level, last.level)
		}
		sums = append(sums, one)
	}
	if len(before) > maxCumulated {
		c.fail("cumulated: %d windows, at most %d are allowed", len(before), maxCumulated)
	}
	return sums
}

// cumulatedEntry returns false if the entry has a problem.
func (c *checker) cumulatedEntry(r rawCumulated, where string, m money) (one cumulated, sound bool) {
	problems := len(c.problems)
	if r.Window.raw == nil {
		c.fail("%swindow is missing", where)
	}
	one.window = c.duration(r.Window, span{where + "window", minWindow, maxWindow, 0})
	one.level = c.level(r.Level, where)
	from, ok := c.amount(r.From, where+"from", m)
	if ok && from == 0 {
		c.fail("%sfrom %s: want more than zero; the level of every amount belongs in levels", where, r.From)
	}
	one.from = from
	return one, ok && len(c.problems) == problems
}

// lowest returns the level of the smallest amount, 0 if the levels have a problem.
func (s service) lowest() protocol.Level {
	if len(s.tiers) == 0 {
		return 0
	}
	return s.tiers[0].level
}
