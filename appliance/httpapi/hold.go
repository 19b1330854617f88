package httpapi

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// coarse is how far Go's timers may be off: its poller counts milliseconds, so that
// the moment at which a timer fires tells when it was set. The rest of a wait is
// slept by the kernel to the nanosecond.
const coarse = 2 * time.Millisecond

// monotonic is the time since the machine started, as the kernel's sleep takes it.
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail with this clock
	return time.Duration(now.Nano())
}

// hold waits until a monotonic time; false when ctx ends before.
func hold(ctx context.Context, until time.Duration) bool {
	left := until - monotonic()
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left - coarse)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	at := unix.NsecToTimespec(int64(until))
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &at, nil), unix.EINTR) {
	}
	return true
}
