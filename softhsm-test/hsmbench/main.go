// Command hsmbench compares the speed of the HSM service with that of its token:
// countersignctl hsm bench, through real worker processes, beside its C loop on the
// token and the latency of the fault shim, on a new SoftHSM token. Each line has
// the figures, their ratio and the aim. Each ratio is the median of some rounds. Its last
// line is
//
//	hsm-bench: N reached, N missed
//
// and its exit code 0 if nothing was missed, otherwise 1. -only NAME[,NAME…] selects
// comparisons; -time and -rounds set how closely they are measured. BREAK=worker gives the
// service one worker with one session and one caller in every measurement, so that aims
// are missed.
package main

import (
	"cmp"
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

// plan is the comparisons to make, how often, and where to print them.
type plan struct {
	wanted []comparison
	rounds int
	out    io.Writer
}

// choose returns the comparisons of these names, or all for "".
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

// service is the setup of the pool in a measurement.
type service struct{ workers, sessions, callers int }

// comparison is one aim.
type comparison struct {
	name, what, against string
	aim                 float64
	latency             time.Duration // of each C_Sign, by the fault shim
	operation           string
	service             service
	base                func(context.Context, *stage, comparison, rates) (float64, error)
}

// comparisons are the aims. The second has the default setup of the appliance. The last
// has one session for each worker, because it measures what a process adds: with several,
// two threads of one process may already use both cores of a small machine.
var comparisons = []comparison{
	{
		"latency", "P-256 at 3 ms, 2 workers with 4 sessions", "8 sessions / 3 ms", 0.9, 3 * time.Millisecond,
		"sign-p256",
		service{2, 4, 32},
		func(_ context.Context, _ *stage, c comparison, _ rates) (float64, error) {
			return float64(c.service.workers*c.service.sessions) / c.latency.Seconds(), nil
		},
	},
	{
		"sign", "P-256, 2 workers with 2 sessions", "a C loop with one thread", 0.7, 0,
		"sign-p256",
		service{2, 2, 16},
		func(_ context.Context, _ *stage, _ comparison, r rates) (float64, error) { return r.of("raw", 1) },
	},
	{
		"derive", "ECDH, 2 workers with 1 session", "one worker with 1", 1.5, 0,
		"derive-p256",
		service{2, 1, 16},
		func(ctx context.Context, s *stage, c comparison, _ rates) (float64, error) {
			c.service.workers = 1
			r, err := s.bench(ctx, c)
			if err != nil {
				return 0, err
			}
			return r.of("service", s.setup(c).callers)
		},
	},
}

// result is the median round of a comparison.
type result struct{ service, base, ratio float64 }

func (s *stage) rounds(ctx context.Context, c comparison, n int) (result, error) {
	var all []result
	for range n {
		measured, err := s.bench(ctx, c)
		if err != nil {
			return result{}, err
		}
		base, err := c.base(ctx, s, c, measured)
		if err != nil {
			return result{}, err
		}
		rate, err := measured.of("service", s.setup(c).callers)
		if err != nil {
			return result{}, err
		}
		all = append(all, result{rate, base, rate / base})
	}
	slices.SortFunc(all, func(a, b result) int { return cmp.Compare(a.ratio, b.ratio) })
	return all[len(all)/2], nil
}
