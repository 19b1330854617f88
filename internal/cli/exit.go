// Package cli provides what the commands share: running a command tree, output formats, and
// questions on the terminal. Data goes to standard output, everything else to standard error.
// Exit codes and hints are in package fault.
package cli

import (
	"errors"

	"countersign/internal/fault"
)

// ender is implemented by errors of any package that choose the exit code. It includes the
// hint so that *exec.ExitError, whose code is a child's, does not implement it.
type ender interface {
	error
	ExitCode() int
	Hint() string
}

// codeOf returns the exit code and hint of the outermost error in the chain that has them,
// otherwise Failed.
func codeOf(err error) (fault.Code, string) {
	var e ender
	switch {
	case err == nil:
		return fault.OK, ""
	case !errors.As(err, &e):
		return fault.Failed, ""
	case e.ExitCode() <= 0 || e.ExitCode() > 255:
		return fault.Failed, e.Hint()
	}
	return fault.Code(e.ExitCode()), e.Hint()
}
