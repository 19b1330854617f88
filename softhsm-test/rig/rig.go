// Package rig starts the real programs, waits for them by condition, ends them
// gently or by kill -9, and reads what they leave behind: exit codes, the hook log,
// the counts of the store, the audit records. It builds nothing.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Programs are what `make build` puts into a [Bin].
var Programs = []string{"countersignd", "hsm-worker", "hsm-probe", "countersignctl", "relayd", "countersign-client"}

// Bin is the directory of the programs, absolute.
type Bin string

// Find gives the directory if every program is in it.
func Find(dir string) (Bin, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for _, p := range Programs {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return "", fmt.Errorf("looking for the programs: %w", err)
		}
	}
	return Bin(dir), nil
}

// Path is that of one program.
func (b Bin) Path(program string) string { return filepath.Join(string(b), program) }

// Call is a program with what it is given.
type Call struct {
	Program string // its name in the [Bin]
	Args    []string
	Dir     string   // working directory; "" is the caller's
	Env     []string // NAME=VALUE, beside the caller's environment
	Stdin   string
}

// Result is what a program that ended leaves behind.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 if a signal ended it
}

// Run runs a program to its end. An exit code other than 0 is no error.
func (b Bin) Run(ctx context.Context, c Call) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.Path(c.Program), c.Args...)
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.Stdin), &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		return r, fmt.Errorf("running %s %s: %w", c.Program, strings.Join(c.Args, " "), err)
	}
	return r, nil
}

// waitLimit bounds every wait of this package.
const waitLimit = 20 * time.Second

// poll is how often a condition is looked at.
const poll = 5 * time.Millisecond

// Until waits for a condition, at most 20 seconds. An error of the condition ends
// the wait. what is named when the time is over: "waiting for what: …".
func Until(ctx context.Context, what string, condition func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		ok, err := condition()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
}
