package main

import "context"

// sleepers are phones that were enrolled before anything was rotated and are used for
// the first time when all is over: four kem epochs and three roots later, most with a
// password under the first mac and wrap.
var sleepers = []string{"eve", "frank+", "grace+", "heidi+", "ivan+", "judy+"}

// wakeAll: phones that slept go on, at a device that was there all the time and at one
// that slept as well.
func (s *stage) wakeAll(ctx context.Context) error {
	if err := s.asleep.Restart(ctx); err != nil {
		return err
	}
	for _, name := range sleepers {
		for at, link := range map[string]string{"the device that slept": s.asleep.Link, "the relay": s.Link, "the strict device": s.strict.Link} {
			r, err := s.authorize(ctx, name, link)
			s.Check(err == nil && r.Code == 0, "%s at %s: exit code %d: %v %s", name, at, r.Code, err, r.Stderr)
		}
	}
	if err := s.enrolWith(ctx, "late", s.late); err != nil {
		return err
	}
	r, err := s.authorize(ctx, "late", s.Link)
	s.Check(err == nil && r.Code == 0, "late, by a code that names the first root: exit code %d: %v %s", r.Code, err, r.Stderr)
	acts, err := s.asleep.Acts()
	s.Check(err == nil && len(acts) == len(sleepers), "the device that slept acted %d times, want %d: %v", len(acts), len(sleepers), err)
	r, err = s.authorize(ctx, "mallory", s.asleep.Link)
	s.Check(err == nil && r.Code == exitDenied, "mallory: exit code %d, want %d: %v", r.Code, exitDenied, err)
	return err
}
