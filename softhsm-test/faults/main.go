// Command faults breaks the HSM of a running appliance in every way that is known,
// while phones authorize, and holds what came of it against what is required: the
// answers and their times, every signature that left, decisions, audit records and
// acts by serial, and what the daemon holds in goroutines, threads and descriptors.
// Its last line is
//
//	hsm-faults: N passed, N failed
//
// and its exit code 0 if nothing failed, else 1. -only NAME[,NAME…] plays some of the
// scenes; BREAK=NAME breaks the product once, so that scenes fail: release lets a bad
// signature through behind the appliance, retry lets a fault strike the internal retry
// too, guard takes away what keeps a refused PIN from being tried again, act lets the
// relay act twice. Another name
// is exit code 2.
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
	exitFailed = 1
	exitUsage  = 2
)

// scene is one way in which an HSM breaks.
type scene struct {
	name string
	play func(context.Context, *stage) error
}

var scenes = []scene{
	{"hang-one", hangOne},
	{"hang-all", hangAll},
	{"hsm-gone", hsmGone},
	{"garbage-volume", volume},
	{"garbage", garbage},
	{"sessions-die", sessionsDie},
	{"login-lost", loginLost},
	{"wrong-pin", wrongPIN},
	{"segfault", segfault},
	{"busy", busy},
	{"slow", slow},
	{"overload", overload},
	{"restart-storm", restartStorm},
}

// Values of BREAK.
const (
	breakRelease = "release"
	breakRetry   = "retry"
	breakGuard   = "guard"
	breakAct     = "act"
)

var breaks = []string{"", breakRelease, breakRetry, breakGuard, breakAct}

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "scenes to play, separated by commas; all if empty")
	if flags.Parse(args) != nil || flags.NArg() != 0 {
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
	failed, err := playAll(ctx, config{bin: bin, broken: getenv("BREAK"), out: stdout}, wanted)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make hsm-faults\n", err)
	}
	if failed != 0 || err != nil {
		return exitFailed
	}
	return exitOK
}

// choose gives the scenes to play.
func choose(only string) (wanted []scene, err error) {
	if only == "" {
		return scenes, nil
	}
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(scenes, func(s scene) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no scene %q: there are %s", name, strings.Join(names(), " "))
		}
		wanted = append(wanted, scenes[i])
	}
	return wanted, nil
}

func names() (all []string) {
	for _, s := range scenes {
		all = append(all, s.name)
	}
	return all
}

// sceneLimit bounds one scene, so that a product that hangs fails and does not hang
// the harness.
const sceneLimit = time.Minute

// playAll plays scenes, each with an appliance of its own; how many checks failed.
func playAll(ctx context.Context, c config, wanted []scene) (failed int, err error) {
	r := &report{out: c.out}
	for _, s := range wanted {
		if err = ctx.Err(); err != nil {
			break
		}
		r.scene(s.name, func() error { return playOne(ctx, c, r, s) })
	}
	fmt.Fprintf(c.out, "hsm-faults: %d passed, %d failed\n", r.passed, r.failed)
	return r.failed, err
}

func playOne(ctx context.Context, c config, r *report, s scene) (err error) {
	ctx, cancel := context.WithTimeout(ctx, sceneLimit)
	defer cancel()
	st, err := open(ctx, c, r)
	if err != nil {
		return err
	}
	if err = s.play(ctx, st); err != nil {
		st.sayLog()
	}
	if closeErr := st.close(); err == nil {
		err = closeErr
	}
	return err
}
