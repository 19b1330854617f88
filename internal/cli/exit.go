// Package cli provides what the commands share: running a command tree, output formats, and
// questions on the terminal. Data goes to standard output, everything else to standard error.
// Exit codes and hints are in package fault.
package cli

import (
	"errors"

	"countersign/internal/fault"
)

// Code is [fault.Code].
type Code = fault.Code

// Error is [fault.Error].
type Error = fault.Error

// The exit codes of package fault.
const (
	OK           = fault.OK
	Failed       = fault.Failed
	Usage        = fault.Usage
	Denied       = fault.Denied
	BadSignature = fault.BadSignature
	NotFound     = fault.NotFound
	Unavailable  = fault.Unavailable
	IO           = fault.IO
	TryAgain     = fault.TryAgain
	Auth         = fault.Auth
	Config       = fault.Config
	Interrupted  = fault.Interrupted
)

// Fail gives err an exit code and a hint. It returns nil if err is nil. New code uses a row of package fault instead.
func Fail(code Code, err error, hint string) error {
	return fault.Row{Exit: code, Advice: hint}.Of(err)
}

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
