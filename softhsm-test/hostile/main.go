// Command hostile plays one who can write to the database of an appliance, also while it
// runs, and one who can touch its backup files. Neither holds a key. It alters every
// column of every record that the schema has, inserts, deletes, swaps and puts back
// records, makes triggers, and forges backups; then it runs each operation that reads
// what was altered, and judges what that granted by what the people of its world were
// really granted. Its last line is
//
//	hostile-test: N passed, N failed
//
// and its exit code 0 if nothing failed, else 1. -quick runs a sample; -all
// prints each case that was granted, conceded or crashed; -only NAME[,NAME…]
// some of the sections; COUNTERSIGN_SEED repeats a sample. BREAK=NAME builds harness and
// product with one line of the product broken, so that cases fail; see overlay.go. Another
// name is exit code 2.
package main

import (
	"context"
	"errors"
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

	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/hostile/world"
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
	{"the untouched world", (*stage).untouched},
	{"directed: a writer of the database", (*stage).directed},
	{"directed: a reader of the seal keys", (*stage).stolenSeals},
	{"directed: backup files", (*stage).files},
	{"schema", (*stage).schema},
	{"whole tables", (*stage).wholesale},
	{"records", (*stage).records},
	{"countersignd dev", (*stage).programs},
}

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

type config struct {
	bin    string
	broken string // which break this program was built with, "" for none
	seed   uint64
	only   []string
	quick  bool
	tell   bool
	out    io.Writer
}

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := config{out: stdout, bin: getenv("COUNTERSIGN_BIN")}
	if c.bin == "" {
		c.bin = "bin"
	}
	flags := flag.NewFlagSet("hostile", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "sections to run, separated by commas, by how their names begin; all if empty")
	flags.BoolVar(&c.tell, "all", false, "print each case that was granted, conceded or crashed")
	flags.BoolVar(&c.quick, "quick", false, "run a sample of the cases")
	if flags.Parse(args) != nil || flags.NArg() != 0 {
		return exitUsage
	}
	var err error
	if c.only, err = choose(*only); err == nil {
		c.seed, err = seedOf(getenv("COUNTERSIGN_SEED"))
	}
	broken := getenv("BREAK")
	if _, known := breaks[broken]; err == nil && broken != "" && !known {
		err = fmt.Errorf("BREAK=%q is unknown: one of:%s", broken, names())
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitUsage
	}
	if broken != "" && builtBroken != broken {
		return rebuild(ctx, rebuilding{config: c, args: args, broken: broken, stderr: stderr})
	}
	c.broken = broken
	failed, err := play(ctx, c)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: make hostile-test\n", err)
	}
	if failed != 0 || err != nil {
		return exitFailed
	}
	return exitOK
}

// choose gives the names of the sections to run.
func choose(only string) (wanted []string, err error) {
	for prefix := range strings.SplitSeq(only, ",") {
		found := false
		for _, s := range sections {
			if strings.HasPrefix(s.name, prefix) {
				wanted, found = append(wanted, s.name), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-only: no section %q", prefix)
		}
	}
	return wanted, nil
}

func seedOf(s string) (uint64, error) {
	if s == "" {
		return mathrand.Uint64(), nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// stage is what the sections share.
type stage struct {
	config
	*arena.Report
	lab
	*table
	random *mathrand.Rand
	shown  map[string]int
	reads  map[string]map[string]bool // operations by the table that they read
}

func play(ctx context.Context, c config) (failed int, err error) {
	fmt.Fprintf(c.out, "COUNTERSIGN_SEED=%d\n", c.seed)
	dir, err := os.MkdirTemp("", "countersign-hostile-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := world.Build(ctx, dir)
	if err != nil {
		return 0, err
	}
	s := &stage{
		config: c, Report: arena.NewReport(c.out), lab: lab{World: w, dir: dir}, table: newTable(),
		random: mathrand.New(mathrand.NewPCG(c.seed, 0)), shown: map[string]int{}, reads: map[string]map[string]bool{},
	}
	for _, section := range sections {
		if slices.Contains(c.only, section.name) {
			s.Section(section.name, func() error { return section.run(s, ctx) })
		}
	}
	if c.broken == "seal" {
		s.Section("each record is proven", func() error { return s.prove(ctx) })
	}
	s.table.print(c.out)
	passed, failed := s.Total()
	fmt.Fprintf(c.out, "hostile-test: %d passed, %d failed\n", passed, failed)
	return failed, nil
}
