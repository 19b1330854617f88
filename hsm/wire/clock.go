package wire

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is CLOCK_MONOTONIC in nanoseconds, the clock of [Request.Deadline]. It asks
// the runtime, which reads the same clock without the system call that either side
// would make for each request.
func Now() int64 { return origin.clock + int64(time.Since(origin.at)) }

// anchor is one moment on both clocks.
type anchor struct {
	at    time.Time
	clock int64
}

var origin = synchronize()

// synchronize reads one clock between two readings of the other, and keeps the try in
// which those were closest, so that a thread that lost its turn is not believed.
func synchronize() (best anchor) {
	closest := time.Hour
	for range 8 {
		before := time.Now()
		clock := monotonic()
		if d := time.Since(before); d < closest {
			closest, best = d, anchor{before.Add(d / 2), clock}
		}
	}
	return best
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}
