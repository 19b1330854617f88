package harness

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

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
	r.t.Helper()
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
