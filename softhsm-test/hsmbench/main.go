// Command hsmbench holds the speed of the HSM service against the token it stands on:
// countersignctl hsm bench, through real worker processes, beside its C loop on the
// token and the fault shim's latency, on a SoftHSM token of its own. Each line has
// the figures, their ratio and the aim; each ratio is the median of some rounds, in
// which the two that are compared take turns. Its last line is
//
//	hsm-bench: N reached, N missed
//
// and its exit code 0 if nothing was missed, else 1. -only NAME[,NAME…] runs some,
// -time and -rounds measure more closely; BREAK=worker gives the service one worker
// with one session and one caller in every measurement, so that aims are missed.
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
	"time"
)

// Exit codes.
const (
	exitOK     = 0
	exitMissed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("hsmbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "comparisons to make, separated by commas; all if empty")
	each := flags.Duration("time", 2*time.Second, "length of each measurement, whole seconds")
	rounds := flags.Int("rounds", 3, "measurements of which the median counts")
	bin := flags.String("bin", "bin", "directory of the programs and faultshim.so")
	if flags.Parse(args) != nil || flags.NArg() != 0 || *rounds < 1 || *each < time.Second || *each > time.Minute {
		return exitUsage
	}
	wanted, err := choose(*only)
	broken := getenv("BREAK")
	if err == nil && broken != "" && broken != "worker" {
		err = fmt.Errorf("BREAK=%q is unknown: want worker", broken)
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitUsage
	}
	s, err := newStage(*bin, each.Round(time.Second), broken != "")
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make hsm-bench\n", err)
		return exitMissed
	}
	defer s.close()
	missed, err := s.compare(ctx, plan{wanted, *rounds, stdout})
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
	}
	if missed > 0 || err != nil {
		return exitMissed
	}
	return exitOK
}

// plan is which comparisons are made, how often, and where they are printed.
type plan struct {
	wanted []comparison
	rounds int
	out    io.Writer
}

// choose gives the comparisons of these names, all if there are none.
func choose(only string) (wanted []comparison, err error) {
	if only == "" {
		return comparisons, nil
	}
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(comparisons, func(c comparison) bool { return c.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no comparison %q", name)
		}
		wanted = append(wanted, comparisons[i])
	}
	return wanted, nil
}

// compare makes the comparisons and prints a line for each.
func (s *stage) compare(ctx context.Context, p plan) (missed int, err error) {
	reached := 0
	for _, c := range p.wanted {
		if c.latency > 0 && s.shim == "" {
			fmt.Fprintf(p.out, "%-12s not measured: there is no faultshim.so beside the programs\n", c.name)
			continue
		}
		r, err := s.rounds(ctx, c, p.rounds)
		if err != nil {
			return missed, fmt.Errorf("%s: %w", c.name, err)
		}
		verdict := "reached"
		if r.ratio < c.aim {
			verdict = "missed"
			missed++
		} else {
			reached++
		}
		fmt.Fprintf(p.out, "%-12s %s: %.0f/s of %s %.0f/s = %.2f, aim %.2f, %s\n", c.name, c.what, r.service, c.against, r.base, r.ratio, c.aim, verdict)
	}
	fmt.Fprintf(p.out, "hsm-bench: %d reached, %d missed\n", reached, missed)
	return missed, nil
}
