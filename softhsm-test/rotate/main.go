// Command rotate rotates every key of an appliance with a real PKCS#11 token while
// phones authorize: none may fail, none may be refused that is good, and none approved
// that is not. Phones and a device that slept over epochs and over roots wake and go on.
// Then it kills the daemon (kill -9) within each step of each key and holds that the
// step, repeated, comes to its end once. Its last line is
//
//	rotate-test: N passed, N failed
//
// and its exit code 0 if nothing failed, else 1. BREAK=NAME breaks the product once, so
// that cases fail: mac retires a version of mac before the records are sealed anew, wrap
// gives one of wrap up before the verifiers are wrapped anew, retired accepts a retired kem
// epoch (these three by a countersignd that is built so), cert spoils the KeyCert of a new
// kem epoch. Another name is exit code 2. COUNTERSIGN_SEED repeats
// the moments of the kills; -keys NAME[,NAME…] rotates some of the keys only, -quick each
// of them once. What follows on a section that failed is left out.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/broken"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// sections in their order.
var sections = []struct {
	name string
	run  func(*stage, context.Context) error
}{
	{"rotation under load", (*stage).rotateAll},
	{"sleepers", (*stage).wakeAll},
	{"kill -9 within each step", (*stage).killAll},
}

// breaks are the values of BREAK.
var breaks = []string{"", "mac", "wrap", "cert", "retired"}

// edits are those that take another countersignd.
var edits = map[string][]broken.Edit{
	"mac": {
		{File: "appliance/keys.go", Old: "if err == nil && under > 0 {", New: "if false {"},
		{File: "appliance/renewal.go", Old: "if !a.keys.Ring().OneOf(keyring.MAC) {", New: "if false {"},
	},
	"wrap": {
		{File: "appliance/keyuse/use.go", Old: "k.Ring().Accepted(keyring.Wrap, time.Now()) {", New: "k.Ring().Accepted(keyring.Wrap, time.Now())[:1] {"},
		{File: "appliance/keylife/rewrap.go", Old: "range ring.Accepted(keyring.Wrap, now)[1:] {", New: "range ring.Accepted(keyring.Wrap, now)[:0] {"},
	},
	"retired": {
		{File: "appliance/keyuse/use.go", Old: "range ring.Accepted(keyring.KEM, now) {", New: "range ring.Versions(keyring.KEM) {"},
	},
}

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("rotate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("keys", "", "keys to rotate, separated by commas; all if empty")
	quick := flags.Bool("quick", false, "rotate each key once, with one kill in each step")
	if flags.Parse(args) != nil || flags.NArg() != 0 {
		return exitUsage
	}
	wanted, err := choose(*only)
	if err != nil {
		fmt.Fprintf(stderr, "error: -keys: %v\n", err)
		return exitUsage
	}
	if broken := getenv("BREAK"); !slices.Contains(breaks, broken) {
		fmt.Fprintf(stderr, "error: BREAK=%q is unknown\nhint: one of:%s\n", broken, strings.Join(breaks, " "))
		return exitUsage
	}
	seed, err := seedOf(getenv("COUNTERSIGN_SEED"))
	if err != nil {
		fmt.Fprintf(stderr, "error: COUNTERSIGN_SEED: %v\n", err)
		return exitUsage
	}
	bin := getenv("COUNTERSIGN_BIN")
	if bin == "" {
		bin = "bin"
	}
	failed, err := play(ctx, config{bin: bin, broken: getenv("BREAK"), seed: seed, turns: wanted, quick: *quick, out: stdout})
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make rotate-test\n", err)
	}
	if failed != 0 || err != nil {
		return exitFailed
	}
	return exitOK
}

// choose gives the turns of the named keys.
func choose(only string) (wanted []turn, err error) {
	if only == "" {
		return turns, nil
	}
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(turns, func(t turn) bool { return t.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no key %q", name)
		}
		wanted = append(wanted, turns[i])
	}
	return wanted, nil
}

func seedOf(s string) (uint64, error) {
	if s == "" {
		return mathrand.Uint64(), nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func play(ctx context.Context, c config) (failed int, err error) {
	if e := edits[c.broken]; e != nil {
		dir, err := broken.Daemon(ctx, rig.Bin(c.bin), e)
		if err != nil {
			return 0, err
		}
		defer func() { _ = os.RemoveAll(dir) }() // at worst it stays in the temporary directory
		c.bin = dir
	}
	fmt.Fprintf(c.out, "COUNTERSIGN_SEED=%d\n", c.seed)
	s, err := open(ctx, c)
	if err != nil {
		return 0, err
	}
	for _, section := range sections {
		s.Section(section.name, func() error { return section.run(s, ctx) })
		if _, failed = s.Total(); failed > 0 {
			break
		}
	}
	err = s.close()
	passed, failed := s.Total()
	fmt.Fprintf(c.out, "rotate-test: %d passed, %d failed\n", passed, failed)
	return failed, err
}
