// Command disaster loses an appliance and brings it back: clients with and without
// passwords, a UV key and a second approver, an ordinary and a strict device; a backup
// of the keys, a copy of the database, shares of the backup key that Debian's age made
// and opens. Then token and state are destroyed, restores that must fail fail, one is
// killed (kill -9) at random moments, and one succeeds: everybody goes on, at every
// level, without enrolling again. Its last line is
//
//	disaster-test: N passed, N failed
//
// and its exit code 0 if nothing failed, else 1. BREAK=NAME breaks the product once, so
// that cases fail: share damages the file of a share, seal a sealed copy when it is made,
// database the copy of the database. Another name is exit code 2.
// COUNTERSIGN_SEED repeats the moments of the kills; -quick has fewer. What follows on
// a section that failed is left out.
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
	{"in business", (*stage).business},
	{"backup", (*stage).backUp},
	{"the disaster", (*stage).disaster},
	{"what brings nothing back", (*stage).refusals},
	{"a restore under kill -9", (*stage).kills},
	{"the restore", (*stage).restore},
	{"in business again", (*stage).again},
}

// breaks are the values of BREAK.
var breaks = []string{"", "share", "seal", "database"}

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("disaster", flag.ContinueOnError)
	flags.SetOutput(stderr)
	quick := flags.Bool("quick", false, "kill the restore twice only")
	if flags.Parse(args) != nil || flags.NArg() != 0 {
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
	failed, err := play(ctx, config{bin: bin, broken: getenv("BREAK"), seed: seed, quick: *quick, out: stdout})
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make disaster-test\n", err)
	}
	if failed != 0 || err != nil {
		return exitFailed
	}
	return exitOK
}

func seedOf(s string) (uint64, error) {
	if s == "" {
		return mathrand.Uint64(), nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// spoilt damages the sealed copy of a key when it is made: by a countersignd that is built
// so, for who writes to the database cannot.
var spoilt = []broken.Edit{{
	File: "appliance/keylife/carry.go", Old: "\t\trow.Sealed, row.SealedFor = made.Sealed[0], sealedFor\n",
	New: "\t\tif row.Name == keyring.Wrap && row.Version == 1 {\n\t\t\tmade.Sealed[0][len(made.Sealed[0])-1] ^= 1\n\t\t}\n\t\trow.Sealed, row.SealedFor = made.Sealed[0], sealedFor\n",
}}

func play(ctx context.Context, c config) (failed int, err error) {
	if c.broken == "seal" {
		dir, err := broken.Daemon(ctx, rig.Bin(c.bin), spoilt)
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
	fmt.Fprintf(c.out, "disaster-test: %d passed, %d failed\n", passed, failed)
	return failed, err
}
