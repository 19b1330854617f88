package pool

import "time"

// Process is what /v1/admin/hsm tells of one worker.
type Process struct {
	PID     int
	Started time.Time
	Well    bool          // an answer can be expected
	Calls   int           // in flight: in the token or waiting
	Most    int           // that may be in flight, before more are refused as busy
	Done    uint64        // calls answered
	Wrong   int           // answers in a row that were wrong
	Proven  time.Time     // when a signature or a canary was last right; zero for never
	Took    time.Duration // of one call inside the token, smoothed
}

// Processes lists the workers that are there, oldest first.
func (p *Pool) Processes() []Process {
	live := *p.live.Load()
	all := make([]Process, 0, len(live))
	for _, l := range live {
		all = append(all, l.process())
	}
	return all
}

func (l *link) process() Process {
	l.record.mu.Lock()
	defer l.record.mu.Unlock()
	return Process{
		PID: l.pid(), Started: l.started, Well: l.well(), Calls: int(l.load.Load()), Most: l.pace.most(false),
		Done: l.record.calls.Load(), Wrong: l.record.wrong, Proven: l.record.proven, Took: time.Duration(l.pace.took.Load()),
	}
}
