package keyplan

import (
	"slices"
	"time"

	"countersign/appliance/keyring"
)

// Schedule says how long a version of each key is in use.
type Schedule struct {
	Periods map[string]time.Duration // by name; 0 or missing: as long as its certificate
	Notice  time.Duration            // how long before its date a rotation is due; at most a quarter of the period
	Auto    bool                     // the daemon rotates, activates and retires; never root
}

// Due says when a key must be rotated.
type Due struct {
	Name     string
	Version  uint64    // in use; 0: none
	At       time.Time // zero: never
	Standing Standing
	Next     uint64 // the version that waits, or comes into use at At; 0: none
}

// Standing compares the date of a rotation with now.
type Standing string

// The standings.
const (
	NotScheduled Standing = "not scheduled"
	Scheduled    Standing = "scheduled" // the next version comes into use in time, without a step
	Later        Standing = "later"
	DueNow       Standing = "due"
	Overdue      Standing = "overdue"
)

// Due returns for every key of the ring when it must be rotated: when its period is over
// or its certificate ends, whichever comes first.
func (s Schedule) Due(ring *keyring.Ring, now time.Time) (all []Due) {
	for _, name := range keyring.Names {
		if len(ring.Versions(name)) > 0 {
			all = append(all, s.due(ring, name, now))
		}
	}
	return all
}

func (s Schedule) due(ring *keyring.Ring, name string, now time.Time) Due {
	d := Due{Name: name, Standing: NotScheduled}
	in, err := ring.Current(name, now)
	if err != nil {
		d.Standing = Overdue
		return d
	}
	d.Version, d.At = in.Version, s.end(in)
	next, ok := successor(ring, in, now)
	if ok {
		d.Next = next.Version
	}
	switch {
	case d.At.IsZero():
	case ok && !next.ActivatedAt.IsZero() && !next.ActivatedAt.After(d.At):
		d.Standing, d.At = Scheduled, next.ActivatedAt
	case !now.Before(d.At):
		d.Standing = Overdue
	case !now.Before(d.At.Add(-min(s.Notice, d.At.Sub(in.ActivatedAt)/4))):
		d.Standing = DueNow
	default:
		d.Standing = Later
	}
	return d
}

// end returns when the version in use must be replaced.
func (s Schedule) end(in keyring.Key) (end time.Time) {
	if period := s.Periods[in.Name]; period > 0 {
		end = in.ActivatedAt.Add(period)
	}
	l, isCertified := lives[in.Name]
	if last := in.NotAfter.Add(-l.linger); isCertified && (end.IsZero() || last.Before(end)) {
		end = last
	}
	return end
}

// successor returns the version that comes into use next without a step, or else one
// that waits.
func successor(ring *keyring.Ring, in keyring.Key, now time.Time) (next keyring.Key, ok bool) {
	candidates := slices.DeleteFunc(slices.Clone(ring.Versions(in.Name)), func(k keyring.Key) bool {
		return !k.Held() || k.Begun(now) || in.Name == keyring.Root && k.Cert == nil ||
			in.Name != keyring.Root && k.Cert != nil && k.Root != ring.RootNumber()
	})
	if len(candidates) == 0 {
		return keyring.Key{}, false
	}
	return slices.MinFunc(candidates, func(a, b keyring.Key) int {
		if a.ActivatedAt.IsZero() != b.ActivatedAt.IsZero() {
			return map[bool]int{true: 1, false: -1}[a.ActivatedAt.IsZero()]
		}
		return a.ActivatedAt.Compare(b.ActivatedAt)
	}), true
}
