// Command attack plays relay, device and phone at byte level against a running
// appliance with a real PKCS#11 token, and holds every attempt against the code
// that came back and the state that was left: the store to the bit, the audit
// records by kind, the hook log. Its last line is
//
//	attack-test: N passed, N failed
//
// and its exit code 0 if nothing failed, else 1. -only NAME[,NAME…] runs some of
// the sections, -quiet N measures times more closely; BREAK=NAME breaks the product
// once, so that cases fail: replay takes a decision out of the store between two
// replays, guard sets a password guard back, flip lets one altered M3 through
// unaltered. Another name is exit code 2.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"countersign/softhsm-test/attack/arena"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// sections in their order; timing comes last, for what it leaves in the store.
var sections = []struct {
	name string
	run  func(context.Context, *arena.Arena) error
}{
	{"flips", flips},
	{"replays", replays},
	{"handles", handles},
	{"attempts", attempts},
	{"counters", counters},
	{"downgrades", downgrades},
	{"approvers", approvers},
	{"decisions", decisions},
	{"trust", trustChain},
	{"store", storeRows},
	{"enrolment", enrolment},
	{"identity", identity},
	{"relay", ownRelay},
	{"timing", timing},
}

// breaks are the values of BREAK.
var breaks = []string{"", "replay", "guard", "flip"}

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("attack", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "sections to run, separated by commas; all if empty")
	quiet := flags.Int("quiet", 250, "tries of each class in the quiet phase of timing; 2000 take ten minutes")
	if flags.Parse(args) != nil || flags.NArg() != 0 || *quiet < 20 {
		return exitUsage
	}
	wanted, err := choose(*only)
	if broken := getenv("BREAK"); err == nil && !slices.Contains(breaks, broken) {
		err = fmt.Errorf("BREAK=%q is unknown: one of:%s", broken, strings.Join(breaks, " "))
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitUsage
	}
	bin := getenv("COUNTERSIGN_BIN")
	if bin == "" {
		bin = "bin"
	}
	failed, err := attack(ctx, arena.Config{Bin: bin, Break: getenv("BREAK"), Quiet: *quiet, Out: stdout}, wanted)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make attack-test\n", err)
	}
	if failed != 0 || err != nil {
		return exitFailed
	}
	return exitOK
}

// choose gives the names of the sections to run.
func choose(only string) (wanted []string, err error) {
	for _, s := range sections {
		wanted = append(wanted, s.name)
	}
	if only == "" {
		return wanted, nil
	}
	names := strings.Split(only, ",")
	for _, name := range names {
		if !slices.Contains(wanted, name) {
			return nil, fmt.Errorf("no section %q: there are %s", name, strings.Join(wanted, " "))
		}
	}
	return names, nil
}

// attack runs sections; how many cases failed.
func attack(ctx context.Context, c arena.Config, wanted []string) (failed int, err error) {
	a, err := arena.Open(ctx, c)
	if err != nil {
		return 0, err
	}
	for _, s := range sections {
		if slices.Contains(wanted, s.name) {
			a.Section(s.name, func() error { return s.run(ctx, a) })
		}
	}
	err = a.Close()
	passed, failed := a.Total()
	fmt.Fprintf(c.Out, "attack-test: %d passed, %d failed\n", passed, failed)
	return failed, err
}
