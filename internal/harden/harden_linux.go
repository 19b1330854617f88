package harden

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Process makes this process not dumpable, so that only root can read its memory, and forbids core
// files to it and to its children. Children that are another program are dumpable again.
func Process() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil { // Linux 2.4 and later
		return fmt.Errorf("clearing dumpable flag: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core files: %w", err)
	}
	return nil
}
