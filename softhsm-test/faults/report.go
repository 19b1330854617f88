package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// report counts and prints. It is safe for concurrent use.
type report struct {
	out io.Writer

	mu             sync.Mutex // guards what follows, and out
	passed, failed int
}

// check is one requirement; what is said of it, figures included, is printed either way.
func (r *report) check(ok bool, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	mark := "  ok    "
	if ok {
		r.passed++
	} else {
		mark = "  FAILED"
		r.failed++
	}
	fmt.Fprintf(r.out, mark+" "+format+"\n", args...)
}

// because is what a line says of an error, nothing of none.
func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + line(err.Error())
}

// line is the beginning of the first line of a text.
func line(text string) string {
	const most = 200
	first, _, _ := strings.Cut(text, "\n")
	return first[:min(len(first), most)]
}

// within is a check of a time.
func (r *report) within(limit, took time.Duration, what string) {
	r.check(took <= limit, "%s: %v (at most %v)", what, took.Round(time.Millisecond), limit)
}

// say prints a figure that nothing is required of.
func (r *report) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "         "+format+"\n", args...)
}

// scene plays one and prints how long it took. That it broke off is a failure.
func (r *report) scene(name string, play func() error) {
	begun := time.Now()
	fmt.Fprintf(r.out, "%s\n", name)
	if err := play(); err != nil {
		r.check(false, "the scene broke off: %v", err)
	}
	r.say("%s took %v", name, time.Since(begun).Round(100*time.Millisecond))
}
