package harness

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

// broke is the panic with which [Must] and [Do] end a test.
type broke struct {
	err error
	at  string // call sites, the innermost first
}

func (b broke) Error() string { return b.err.Error() + " (" + b.at + ")" }
func (b broke) Unwrap() error { return b.err }

// Do ends the test under way if err is not nil. In another goroutine than the test's it may
// be called only below [Each] or [Try].
func Do(err error) {
	if err == nil {
		return
	}
	if b, ok := err.(broke); ok {
		panic(b)
	}
	panic(broke{err, callers()})
}

// Must is Do for a call that also returns a value.
func Must[T any](v T, err error) T {
	Do(err)
	return v
}

// Must2 is Do for a call that also returns two values.
func Must2[A, B any](a A, b B, err error) (A, B) {
	Do(err)
	return a, b
}

// Fail is Do with a new error.
func Fail(format string, args ...any) { Do(fmt.Errorf(format, args...)) }

// Try returns the error with which f calls Do, Must or Fail.
func Try(f func()) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case broke:
			err = p
		default:
			panic(p)
		}
	}()
	f()
	return nil
}

// Each calls f for 0 to n-1, at most limit at once, and waits.
func Each(n, limit int, f func(i int)) {
	var group errgroup.Group
	group.SetLimit(limit)
	for i := range n {
		group.Go(func() error { return Try(func() { f(i) }) })
	}
	Do(group.Wait())
}

// callers lists the files and lines of a suite that led here.
func callers() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var at []string
	for {
		f, more := frames.Next()
		file := filepath.Base(f.File)
		if strings.Contains(f.Function, "/softhsm-test") && file != "report.go" && file != "suite.go" {
			at = append(at, fmt.Sprintf("%s:%d", file, f.Line))
		}
		if !more {
			return strings.Join(at, " < ")
		}
	}
}

// shown is the number of failures of a section that are printed in full.
const shown = 12

// Report counts the checks of a test and of its sections, and writes the test's narration. It
// is safe for concurrent use, except for Section.
type Report struct {
	Every bool // print the checks that pass, too

	mu             sync.Mutex // guards what follows
	t              *testing.T // of the section under way
	passed, failed int        // of the section under way
}

// Run runs a test with a report. [Must], [Do] and [Fail] end it. Afterwards every daemon is
// stopped, so that no other test may run at the same time.
func Run(t *testing.T, test func(*Report)) {
	t.Helper()
	r := &Report{t: t}
	r.broken(Try(func() { test(r) }))
	r.broken(stopDaemons())
}

// T returns the test, or the section under way.
func (r *Report) T() *testing.T { return r.t }

// Context is canceled when the test or section under way ends.
func (r *Report) Context() context.Context { return r.t.Context() }

// Check counts a check, and reports it as an error if it failed.
func (r *Report) Check(ok bool, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counted.Lock()
	defer counted.Unlock()
	if ok {
		r.passed, counted.passed = r.passed+1, counted.passed+1
		if r.Every {
			r.sayLocked("ok     "+format, args...)
		}
		return
	}
	r.failed, counted.failed = r.failed+1, counted.failed+1
	if r.t.Fail(); r.failed <= shown {
		r.sayLocked("FAILED: "+format, args...)
	}
}

// Say writes a line.
func (r *Report) Say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sayLocked(format, args...)
}

func (r *Report) sayLocked(format string, args ...any) {
	fmt.Fprintf(r.t.Output(), format+"\n", args...)
}

// broken counts a test or section that ended early as one failed check.
func (r *Report) broken(err error) {
	if err != nil {
		r.Check(false, "ended early: %v", err)
	}
}

// Section runs a part of the test as a subtest, and reports whether it ran and passed. If -run
// or -only leaves it out, it passes.
func (r *Report) Section(name string, section func()) bool {
	outer := r.t
	defer func() { r.t = outer }()
	return outer.Run(name, func(t *testing.T) {
		r.t, r.passed, r.failed = t, 0, 0
		r.broken(Try(section))
		if r.failed > shown {
			r.Say("… and %d failures more", r.failed-shown)
		}
		if suite.Line == "" {
			r.Say("%s: %d passed, %d failed", name, r.passed, r.failed)
		}
	})
}
