package report

import (
	"fmt"
	"math"
	"time"
)

// Settings are the recommended values in config.toml for this token on this machine.
type Settings struct {
	Workers  int    `json:"workers"`
	Sessions int    `json:"sessions"` // of each worker
	Timeout  string `json:"timeout"`
	Why      string `json:"why"`
}

// Machine is what limits the settings besides the curves.
type Machine struct {
	Cores       int
	MaxSessions uint // of the token, 0 is unlimited
}

const (
	// spare is what a worker opens beside its working sessions: two of crypto11
	// and the one that keeps the login.
	spare      = 3
	minWorkers = 2 // one that hangs is no outage
	maxTimeout = time.Minute
	minTimeout = 2 * time.Second
	parallel   = 1.5 // times one session's rate is the least that several have to reach
	patience   = 20  // times the slowest of a hundred calls is hung, not slow
)

// Recommend returns how many workers and sessions are useful. Sessions beyond the knee
// only add latency.
func Recommend(curves []Curve, m Machine) *Settings {
	knee, slowest, local, serial := 0, 0.0, false, ""
	for _, c := range curves {
		knee = max(knee, c.Knee)
		slowest = max(slowest, c.At(c.Knee).P99)
		first := c.At(1)
		isLocal := first.CPU > first.P50/2 // not the mean: others may be at work here
		local = local || isLocal
		if isLocal && m.Cores > 1 && c.At(c.Knee).Rate < parallel*first.Rate {
			serial = c.Operation
		}
	}
	if knee == 0 {
		return nil
	}
	s := &Settings{Workers: minWorkers, Timeout: timeout(slowest).String()}
	switch {
	case serial != "":
		s.Workers = max(minWorkers, min(m.Cores, 64))
		s.Sessions = 2
		s.Why = fmt.Sprintf("the module computes on the %d cores here and does one %s at a time, so processes help and sessions do not; the second session works while the first one's answer travels", m.Cores, serial)
	case local:
		s.Sessions = (max(knee, m.Cores)+s.Workers-1)/s.Workers + 1
		s.Why = fmt.Sprintf("the module computes on the %d cores here: a session for each over all workers, and one more that works while an answer travels", m.Cores)
	default:
		s.Sessions = (knee + s.Workers - 1) / s.Workers
		s.Why = fmt.Sprintf("the token is waited for, not the processor: %d sessions over all workers reach nine tenths of its best, more only queue inside it", knee)
	}
	return s.within(m)
}

// within keeps all workers below the token's session limit.
func (s *Settings) within(m Machine) *Settings {
	if m.MaxSessions == 0 {
		return s
	}
	fit := int(m.MaxSessions)/s.Workers - spare
	if fit < s.Sessions {
		s.Sessions = max(fit, 1)
		s.Why += fmt.Sprintf("; the token's limit of %d sessions allows no more", m.MaxSessions)
	}
	return s
}

// timeout is longer than slow calls and shorter than a hang.
func timeout(slowestUS float64) time.Duration {
	seconds := math.Ceil(patience * slowestUS / 1e6)
	return min(max(time.Duration(seconds)*time.Second, minTimeout), maxTimeout)
}
