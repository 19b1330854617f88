package pool

import (
	"sync"
	"sync/atomic"
	"time"
)

// record is what a worker has to its credit and against it.
type record struct {
	calls atomic.Uint64 // answered

	mu     sync.Mutex // guards what follows
	wrong  int        // answers in a row that were wrong
	failed int        // canaries in a row that failed
	proven time.Time  // when its last signature or canary was right
}

// sound: an answer was verified and is right.
func (l *link) sound() {
	l.record.mu.Lock()
	defer l.record.mu.Unlock()
	l.record.wrong, l.record.failed, l.record.proven = 0, 0, time.Now()
}

// strike: an answer was verified and is wrong, the n-th in a row.
func (l *link) strike() (n int) {
	l.record.mu.Lock()
	defer l.record.mu.Unlock()
	l.record.wrong++
	return l.record.wrong
}

// failed: a canary got no answer, the n-th in a row.
func (l *link) failed() (n int) {
	l.record.mu.Lock()
	defer l.record.mu.Unlock()
	l.record.failed++
	return l.record.failed
}

// pace is how fast a worker answers, which bounds how many may wait for it: whoever
// would wait for longer than queue is better told at once.
type pace struct {
	sessions int           // served at once; 0 takes the most
	queue    time.Duration // how long a call may wait before it is served

	took atomic.Int64 // of one call inside the token, smoothed over the last few dozen, ns
}

// observe learns from an answer. Callers are the readers, one at a time.
func (p *pace) observe(took time.Duration) {
	const weight = 32
	before := p.took.Load()
	p.took.Store(before + (int64(took)-before)/weight)
}

// most is how many calls may be in flight, eight for each session at least; for one
// that begins something to be let in it is half of that.
func (p *pace) most(begins bool) int {
	took := p.took.Load()
	if took <= 0 || p.sessions == 0 {
		return maxInFlight
	}
	n := max(int64(p.sessions)*int64(p.queue)/took, int64(8*p.sessions))
	if begins {
		n /= 2
	}
	return int(min(n, maxInFlight))
}
