package keyring

import (
	"slices"
	"time"
)

// Schedule is how long a version of each key is to be in use.
type Schedule struct {
	Periods map[string]time.Duration // by name; 0 or missing: as long as its certificate
	Notice  time.Duration            // from when before its time a rotation is due; a quarter of the period at most
	Auto    bool                     // rotate, activate and retire by itself; never root
}

// Due is when a key is to be rotated.
type Due struct {
	Name     string
	Version  uint64    // in use; 0: none is
	At       time.Time // zero: never
	Standing Standing
	Next     uint64 // version that waits, or comes by itself at At; 0: none
}

// Standing is how a date stands to now.
type Standing string

// The standings.
const (
	NotScheduled Standing = "not scheduled"
	Scheduled    Standing = "scheduled" // the next version comes into use by itself in time
	Later        Standing = "later"
	DueNow       Standing = "due"
	Overdue      Standing = "overdue"
)

// Due tells of every key that there is when it is to be rotated: when its period is
// over, or its certificate ends, whichever comes first.
func (r *Keyring) Due(s Schedule, now time.Time) []Due {
	v := r.live.Load()
	var out []Due
	for _, name := range names {
		if len(v.keys[name]) > 0 {
			out = append(out, v.due(s, name, now))
		}
	}
	return out
}

func (v *ring) due(s Schedule, name string, now time.Time) Due {
	d := Due{Name: name, Standing: NotScheduled}
	in, err := v.current(name, now)
	if err != nil {
		d.Standing = Overdue
		return d
	}
	d.Version, d.At = in.Version, v.end(s, in)
	next, ok := v.successor(in, now)
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

// end is when the version in use is to be replaced.
func (v *ring) end(s Schedule, in Key) (end time.Time) {
	if period := s.Periods[in.Name]; period > 0 {
		end = in.ActivatedAt.Add(period)
	}
	k, isCertified := certifiedNamed(in.Name)
	if last := in.NotAfter.Add(-k.linger); isCertified && (end.IsZero() || last.Before(end)) {
		end = last
	}
	return end
}

// successor is the version that comes into use next by itself, or else one that waits.
func (v *ring) successor(in Key, now time.Time) (next Key, ok bool) {
	candidates := slices.DeleteFunc(slices.Clone(v.keys[in.Name]), func(k Key) bool {
		return !k.held() || k.begun(now) || in.Name == Root && k.Cert == nil || in.Name != Root && k.Cert != nil && k.Root != v.rootNumber()
	})
	if len(candidates) == 0 {
		return Key{}, false
	}
	return slices.MinFunc(candidates, func(a, b Key) int {
		if a.ActivatedAt.IsZero() != b.ActivatedAt.IsZero() {
			return map[bool]int{true: 1, false: -1}[a.ActivatedAt.IsZero()]
		}
		return a.ActivatedAt.Compare(b.ActivatedAt)
	}), true
}
