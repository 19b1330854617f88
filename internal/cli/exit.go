// Package cli provides what the commands share: exit codes and hints, output formats, and
// questions on the terminal. Data goes to standard output, everything else to standard error.
package cli

import (
	"errors"
	"strconv"
)

// Code is an exit code. The codes are an API: scripts rely on them.
type Code int

// The exit codes.
const (
	OK           Code = 0
	Failed       Code = 1   // anything without a more specific code
	Usage        Code = 2   // the command line is wrong
	Denied       Code = 3   // denied by policy
	BadSignature Code = 4   // a signature does not verify
	NotFound     Code = 5   // no such key, client, record, …
	Unavailable  Code = 69  // HSM or store cannot be reached
	IO           Code = 74  // reading or writing failed
	TryAgain     Code = 75  // may succeed later without a change
	Auth         Code = 77  // authentication failed, or the PIN was refused
	Config       Code = 78  // the configuration is wrong
	Interrupted  Code = 130 // SIGINT or SIGTERM ended the command
)

var codeNames = map[Code]string{
	OK: "ok", Failed: "failed", Usage: "usage", Denied: "denied", BadSignature: "bad-signature", NotFound: "not-found",
	Unavailable: "unavailable", IO: "io", TryAgain: "try-again", Auth: "auth", Config: "config", Interrupted: "interrupted",
}

// String returns the code's name, or its number if it has none.
func (c Code) String() string {
	if name, ok := codeNames[c]; ok {
		return name
	}
	return strconv.Itoa(int(c))
}

// Error is an error that knows its exit code and what the user can do.
type Error struct {
	Code   Code
	Err    error  // what happened
	Advice string // what to do about it, one sentence; "" if nothing is known
}

// Fail gives err an exit code and a hint. It returns nil if err is nil.
func Fail(code Code, err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err, Advice: hint}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the code as a number.
func (e *Error) ExitCode() int { return int(e.Code) }

// Hint returns what to do.
func (e *Error) Hint() string { return e.Advice }

// ender is implemented by errors of any package that choose the exit code. It includes the
// hint so that *exec.ExitError, whose code is a child's, does not implement it.
type ender interface {
	error
	ExitCode() int
	Hint() string
}

// codeOf returns the exit code and hint of the outermost error in the chain that has them,
// otherwise Failed.
func codeOf(err error) (Code, string) {
	var e ender
	switch {
	case err == nil:
		return OK, ""
	case !errors.As(err, &e):
		return Failed, ""
	case e.ExitCode() <= 0 || e.ExitCode() > 255:
		return Failed, e.Hint()
	}
	return Code(e.ExitCode()), e.Hint()
}
