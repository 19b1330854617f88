package clock

import (
	"bytes"
	"crypto/sha256"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bootID returns the first 4 bytes of the SHA-256 of the random number that the kernel chose at its
// start, or zero if that cannot be read.
var bootID = sync.OnceValue(func() (id [4]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if text = bytes.TrimSpace(text); err == nil && len(text) > 0 {
		sum := sha256.Sum256(text)
		copy(id[:], sum[:])
	}
	return id
})

// Now returns the moment by CLOCK_BOOTTIME. It is the zero value if the host has none.
func Now() Boot {
	var at unix.Timespec
	if bootID() == [4]byte{} || unix.ClockGettime(unix.CLOCK_BOOTTIME, &at) != nil {
		return Boot{}
	}
	return Boot{ID: bootID(), At: time.Duration(at.Nano())}
}
