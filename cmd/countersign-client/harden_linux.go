package main

import "golang.org/x/sys/unix"

// Passwords and the phone's secret stay out of core dumps and of other processes'
// reach.
func init() {
	harden = func() {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // Linux 2.4 and later
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	}
}
