package main

import "golang.org/x/sys/unix"

// Keep passwords and the phone's secret out of core dumps and away from other processes.
func init() {
	harden = func() {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // Linux 2.4 and later
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	}
}
