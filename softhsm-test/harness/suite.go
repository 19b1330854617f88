package harness

import (
	"errors"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Suite describes the tests of one package, which can also be built by `go test -c` and run as
// a program. The program prints all that the tests report, and its last line counts their
// checks:
//
//	NAME: N passed, N failed
//
// Its exit code is 0 if nothing failed, 1 if something did, and 2 if an argument or BREAK is
// unknown. -only NAME[,NAME…] runs the sections whose names begin so, -quick is -test.short,
// COUNTERSIGN_SEED repeats a run that chooses at random, and BREAK=NAME breaks the product or
// the test on purpose, so that checks fail.
type Suite struct {
	Name     string       // in the last line
	Sections []string     // for -only
	Breaks   []string     // values of BREAK
	Check    func() error // of the suite's own flags; nil: none
	Line     string       // last line after the name, with passed and all checks; "" is the above
}

// suite is the one of this process, which Main sets.
var suite Suite

// counted are the checks of this process.
var counted struct {
	sync.Mutex
	passed, failed int
}

// Flags that every suite has.
var (
	only = flag.String("only", "", "run the sections that begin with one of these names, separated by commas")
	_    = flagQuick()
)

func flagQuick() struct{} {
	flag.BoolFunc("quick", "same as -test.short", func(string) error { return flag.Set("test.short", "true") })
	return struct{}{}
}

// Main runs the tests of a suite and exits.
func Main(m *testing.M, s Suite) { os.Exit(run(m, s)) }

func run(m *testing.M, s Suite) int {
	suite = s
	flag.Parse()
	err := errors.Join(s.checkBreak(), s.choose())
	if err == nil && s.Check != nil {
		err = s.Check()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		return 2
	}
	if program() {
		Do(flag.Set("test.v", "true"))
		if s.Name != "" {
			Do(flag.Set("test.skip", "^TestBreaks$"))
		}
	}
	defer stopOnSignal()()
	code := m.Run()
	if temporary != "" {
		_ = os.RemoveAll(temporary) // at worst it stays in the temporary directory
	}
	if s.Name != "" {
		fmt.Println(s.last(counted.passed, counted.failed))
	}
	return code
}

// program reports whether the tests run as a program and not under `go test`.
func program() bool { return flag.Lookup("test.paniconexit0").Value.String() != "true" }

func (s Suite) last(passed, failed int) string {
	if s.Line != "" {
		return s.Name + ": " + fmt.Sprintf(s.Line, passed, passed+failed)
	}
	return fmt.Sprintf("%s: %d passed, %d failed", s.Name, passed, failed)
}

// Break returns the value of BREAK.
func Break() string { return os.Getenv("BREAK") }

func (s Suite) checkBreak() error {
	if name := Break(); name != "" && !slices.Contains(s.Breaks, name) {
		return fmt.Errorf("BREAK=%q is unknown\nhint: one of: %s", name, strings.Join(s.Breaks, " "))
	}
	return nil
}

// choose translates -only into -test.run.
func (s Suite) choose() error {
	if *only == "" {
		return nil
	}
	var patterns []string
	for prefix := range strings.SplitSeq(*only, ",") {
		if !slices.ContainsFunc(s.Sections, func(name string) bool { return strings.HasPrefix(name, prefix) }) {
			return fmt.Errorf("-only: no section %q\nhint: one of: %s", prefix, strings.Join(s.Sections, ", "))
		}
		pattern := "^" + regexp.QuoteMeta(prefix)
		if slices.Contains(s.Sections, prefix) {
			pattern += "$"
		}
		patterns = append(patterns, pattern)
	}
	return flag.Set("test.run", "/("+strings.Join(patterns, "|")+")")
}

// Brief reports whether the tests run under `go test -short`, as `make test` does, and not as a
// program. Sections that take long are left out then.
func Brief() bool { return testing.Short() && !program() }

// running are the daemons of this process that have not ended, in the order of their starts.
var running struct {
	sync.Mutex
	daemons []*Daemon
}

// stopDaemons stops all daemons, the newest first.
func stopDaemons() (err error) {
	running.Lock()
	daemons := slices.Clone(running.daemons)
	running.Unlock()
	for _, d := range slices.Backward(daemons) {
		_, stopped := d.Stop()
		err = errors.Join(err, stopped)
	}
	return err
}

// stopOnSignal kills the daemons and exits at SIGINT and SIGTERM.
func stopOnSignal() (end func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		running.Lock()
		for _, d := range running.daemons {
			_ = d.cmd.Process.Kill() // it may have ended
		}
		os.Exit(1)
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// Seed returns the seed of COUNTERSIGN_SEED, or a random one, and logs it.
func Seed(t *testing.T) *mathrand.Rand {
	t.Helper()
	seed := mathrand.Uint64()
	if s := os.Getenv("COUNTERSIGN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("COUNTERSIGN_SEED: %v", err)
		}
	}
	fmt.Fprintf(t.Output(), "COUNTERSIGN_SEED=%d\n", seed)
	return mathrand.New(mathrand.NewPCG(seed, 0))
}

// TempDir returns a new directory that is removed after the test. Its path is short enough for Unix
// sockets below it; the path that [testing.T.TempDir] returns may not be.
func TempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "countersign-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // at worst it stays in the temporary directory
	return dir
}

// TestEdits checks that the edits of each break fit the source.
func TestEdits(t *testing.T, breaks map[string][]Edit) {
	for name, edits := range breaks {
		if _, err := Overlay(t.Context(), t.TempDir(), edits); err != nil {
			t.Errorf("BREAK=%s: %v", name, err)
		}
	}
}

// Broken is a run of this suite as a program that ends with an exit code.
type Broken struct {
	Break string
	Args  []string // beside -quick
	Exit  int
	Line  string // end of the last line; "": not looked at
	Short bool   // run it in go test -short too, as cases with exit code 2
}

// TestBreaks runs the suite as a program, once for each case, several at once. In go test -short
// it runs only the cases that are short.
func TestBreaks(t *testing.T, cases ...Broken) {
	t.Parallel()
	if testing.Short() {
		cases = slices.DeleteFunc(cases, func(c Broken) bool { return c.Exit != 2 && !c.Short })
	}
	bin := Must(Built())
	for _, c := range cases {
		t.Run("BREAK="+c.Break+" "+strings.Join(c.Args, " "), func(t *testing.T) {
			t.Parallel()
			self := Must(filepath.Abs(os.Args[0]))
			cmd := exec.CommandContext(t.Context(), self, append([]string{"-quick"}, c.Args...)...)
			cmd.Env = append(os.Environ(), "BREAK="+c.Break, "COUNTERSIGN_BIN="+string(bin))
			out, err := cmd.CombinedOutput()
			if err != nil && cmd.ProcessState == nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			last := lines[len(lines)-1]
			good := strings.HasPrefix(last, suite.Name+": ") && strings.HasSuffix(last, c.Line)
			if code := cmd.ProcessState.ExitCode(); code != c.Exit || c.Exit != 2 && !good {
				t.Errorf("exit code %d, last line %q: want %d, …%q\n%s", code, last, c.Exit, c.Line, out)
			}
		})
	}
}
