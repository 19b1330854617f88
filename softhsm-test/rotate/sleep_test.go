package rotate

import (
	"context"
	"testing"

	"countersign/softhsm-test/harness"
)

// sleepers are phones that were enrolled before anything was rotated and are used for
// the first time when all is over: four kem epochs and three roots later, most with a
// password under the first mac and wrap.
var sleepers = []string{"eve", "frank+", "grace+", "heidi+", "ivan+", "judy+"}

// asleep returns the sleepers, two of them under -short.
func asleep() []string {
	if testing.Short() {
		return sleepers[:2]
	}
	return sleepers
}

// wakeAll: phones that slept go on, at a device that was there all the time and at one
// that slept as well.
func (s *stage) wakeAll(ctx context.Context) {
	harness.Do(s.asleep.Restart(ctx))
	for _, name := range asleep() {
		for at, link := range map[string]string{"the device that slept": s.asleep.Link, "the relay": s.Link, "the strict device": s.strict.Link} {
			r := s.authorize(ctx, name, link)
			s.Check(r.Code == 0, "%s at %s: exit code %d: %s", name, at, r.Code, r.Stderr)
		}
	}
	s.enrolWith(ctx, "late", s.late)
	r := s.authorize(ctx, "late", s.Link)
	s.Check(r.Code == 0, "late, by a code that names the first root: exit code %d: %s", r.Code, r.Stderr)
	acts := harness.Must(s.asleep.Acts())
	s.Check(len(acts) == len(asleep()), "the device that slept acted %d times, want %d", len(acts), len(asleep()))
	r = s.authorize(ctx, "mallory", s.asleep.Link)
	s.Check(r.Code == exitDenied, "mallory: exit code %d, want %d", r.Code, exitDenied)
}
