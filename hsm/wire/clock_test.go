package wire

import (
	"testing"
	"time"
)

// Now is between two readings of the clock itself, but for what the anchor may be
// off.
func TestNow(t *testing.T) {
	const off = int64(100 * time.Microsecond)
	for range 1000 {
		before, now, after := monotonic(), Now(), monotonic()
		if now < before-off || now > after+off {
			t.Fatalf("%d is not between %d and %d", now, before, after)
		}
	}
}

func BenchmarkNow(b *testing.B) {
	for name, f := range map[string]func() int64{"runtime": Now, "system call": monotonic} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f()
			}
		})
	}
}
