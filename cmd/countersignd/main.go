// Command countersignd is the appliance. It wires rooms together and decides
// nothing.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"countersign/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	harden()
	p := cli.Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	os.Exit(cli.Main(ctx, root(), p))
}

// harden keeps files private and the PIN out of core dumps and of other processes'
// reach.
func harden() {
	unix.Umask(0o077)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // Linux 2.4 and later
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
