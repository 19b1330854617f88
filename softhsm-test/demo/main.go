// Command demo shows the main job with the real programs, a real PKCS#11 token and
// an attacker on the wire, and holds every scene against what must be left behind:
// exit codes, counts of the store, audit records and the relay's hook log. It ends
// with one line:
//
//	demo: N scenes, M as expected
//
// and exit code 0 if M is N, else 1. BREAK=NAME breaks the product once, so that one
// scene is not as expected: replay, bit, order, suspend, guard, evidence, limit. Another name is exit code 2.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// breaks are the values of BREAK.
var breaks = []string{"", "replay", "bit", "order", "suspend", "guard", "evidence", "limit"}

func main() { os.Exit(run(os.Getenv, os.Stdout, os.Stderr)) }

func run(getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if broken := getenv("BREAK"); !slices.Contains(breaks, broken) {
		fmt.Fprintf(stderr, "error: BREAK=%q is unknown\nhint: one of:%s\n", broken, strings.Join(breaks, " "))
		return exitUsage
	}
	bin := getenv("COUNTERSIGN_BIN")
	if bin == "" {
		bin = "bin"
	}
	s, err := open(ctx, config{bin: bin, broken: getenv("BREAK"), out: stdout})
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make demo\n", err)
		return exitFailed
	}
	good := s.play(ctx)
	if err := s.close(); err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		good = 0
	}
	fmt.Fprintf(stdout, "demo: %d scenes, %d as expected\n", len(scenes), good)
	if good != len(scenes) {
		return exitFailed
	}
	return exitOK
}
