// Package clock measures time regardless of changes of the system's clock.
package clock

import "time"

// Boot is a moment, measured from the start of the host. Moments of one ID can be compared,
// also by different processes.
type Boot struct {
	_  struct{}      `cbor:",toarray"`
	ID [4]byte       // of the boot
	At time.Duration // since then, with the time that the host slept
}

// Since returns the time from then to b. It returns false if the moments are of different boots, or if a
// boot is unknown.
func (b Boot) Since(then Boot) (time.Duration, bool) {
	return b.At - then.At, b.ID == then.ID && b.ID != [4]byte{}
}

// Steady is a clock that is not set back while the process runs: it shows the system's
// clock, or the time that has passed since the start, whichever is later.
type Steady struct {
	wall  time.Time
	start Boot
	boot  func() Boot
	now   func() time.Time
}

// New starts a clock.
func New() *Steady { return newSteady(Now, time.Now) }

func newSteady(boot func() Boot, now func() time.Time) *Steady {
	// Without the monotonic reading, which stops while the host sleeps.
	return &Steady{wall: now().Round(0), start: boot(), boot: boot, now: now}
}

// Now returns the time.
func (s *Steady) Now() time.Time {
	wall := s.now()
	if least, ok := s.least(); ok && wall.Before(least) {
		return least
	}
	return wall
}

// Behind returns how far the system's clock was set back since the start; 0 if it was not.
func (s *Steady) Behind() time.Duration {
	least, ok := s.least()
	if !ok {
		return 0
	}
	return max(least.Sub(s.now().Round(0)), 0)
}

func (s *Steady) least() (time.Time, bool) {
	passed, ok := s.boot().Since(s.start)
	return s.wall.Add(passed), ok
}
