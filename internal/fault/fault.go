package fault

import (
	"errors"
	"strings"
)

// Row is one row of the table.
type Row struct {
	// Text is what the program prints, or the part of it that does not change. {error} stands for the error that
	// [Row.Of] gets, and other names in braces for values of [Row.With].
	Text string
	Exit Code
	// Cause says what happened, for the documentation; "" if Text says it.
	Cause string
	// Advice says what to do: the hint that the program prints. It has the same placeholders. "" if nothing is known.
	Advice string
}

// Error is an error that knows its exit code and what the user can do.
type Error struct {
	Code   Code
	Err    error  // what happened
	Advice string // what to do about it, one sentence; "" if nothing is known

	text string // replaces the text of Err unless it is ""
}

func (e *Error) Error() string {
	if e.text != "" {
		return e.text
	}
	return e.Err.Error()
}

// Unwrap returns what happened.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the code as a number.
func (e *Error) ExitCode() int { return int(e.Code) }

// Hint returns what to do.
func (e *Error) Hint() string { return e.Advice }

// placeholder of the error in the text of a row.
const placeholder = "{error}"

// Of gives err the exit code and the hint of the row. It returns nil if err is nil. If the row's text has {error}, the
// error reads as this text; otherwise it reads as err, and the row's text only describes it.
func (r Row) Of(err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Code: r.Exit, Err: err, Advice: r.Advice}
	if strings.Contains(r.Text, placeholder) {
		e.text = strings.ReplaceAll(r.Text, placeholder, err.Error())
	}
	return e
}

// Error returns an error that reads as the row's text.
func (r Row) Error() error {
	return &Error{Code: r.Exit, Err: errors.New(r.Text), Advice: r.Advice}
}

// With replaces {name} by value in text and advice, for each pair.
func (r Row) With(pairs ...string) Row {
	for i := 0; i+1 < len(pairs); i += 2 {
		name := "{" + pairs[i] + "}"
		r.Text = strings.ReplaceAll(r.Text, name, pairs[i+1])
		r.Advice = strings.ReplaceAll(r.Advice, name, pairs[i+1])
	}
	return r
}

// Sentinels maps errors to rows. An error may wrap several of them: the first in the list counts.
type Sentinels []struct {
	Err error
	Row Row
}

// Find returns the row of an error.
func (s Sentinels) Find(err error) (row Row, ok bool) {
	for _, known := range s {
		if errors.Is(err, known.Err) {
			return known.Row, true
		}
	}
	return row, false
}

//go:generate go test -run TestDocument -write .

// topic is a chapter of the table.
type topic struct {
	title string
	rows  []Row
}

// chapters lists the chapters in the order of their files.
var chapters []*topic

func chapter(title string) *topic {
	t := &topic{title: title}
	chapters = append(chapters, t)
	return t
}

// row adds a row to the chapter.
func (t *topic) row(r Row) Row {
	t.rows = append(t.rows, r)
	return r
}
