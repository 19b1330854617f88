package harness

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

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
		if strings.Contains(f.Function, "/softhsm-test") && file != "must.go" && file != "suite.go" {
			at = append(at, fmt.Sprintf("%s:%d", file, f.Line))
		}
		if !more {
			return strings.Join(at, " < ")
		}
	}
}
