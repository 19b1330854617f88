package faults

import (
	"strings"
	"time"
)

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
func (s *stage) within(limit, took time.Duration, what string) {
	s.Check(took <= limit, "%s: %v (at most %v)", what, took.Round(time.Millisecond), limit)
}
