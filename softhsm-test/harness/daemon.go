package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// StopLimit is how long a daemon may take to end after SIGTERM.
const StopLimit = 2 * time.Second

// Daemon is a program that runs until it is stopped.
type Daemon struct {
	name   string
	cmd    *exec.Cmd
	log    *log
	exited chan struct{} // closed once it was waited for
}

// log is the standard error of a daemon.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Start starts a program in the background. Standard input is empty.
func (b Bin) Start(c Call) (*Daemon, error) {
	d := &Daemon{name: c.Program, cmd: exec.Command(b.Path(c.Program), c.Args...), log: &log{}, exited: make(chan struct{})}
	d.cmd.Dir, d.cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	// Children that outlive a killed daemon keep its standard error open, so that the end of the
	// process counts and not the end of the pipe.
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.WaitDelay = d.log, d.log, StopLimit
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Program, err)
	}
	running.Lock()
	running.daemons = append(running.daemons, d)
	running.Unlock()
	go func() {
		_ = d.cmd.Wait() // ExitCode is looked at
		running.Lock()
		running.daemons = slices.DeleteFunc(running.daemons, func(o *Daemon) bool { return o == d })
		running.Unlock()
		close(d.exited)
	}()
	return d, nil
}

// PID is the process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log is what the daemon has written to standard output and standard error.
func (d *Daemon) Log() string { return d.log.String() }

// Running says whether the process has not ended.
func (d *Daemon) Running() bool {
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// Wait waits for the end and gives the exit code, -1 after a signal.
func (d *Daemon) Wait(ctx context.Context) (int, error) {
	err := Until(ctx, "the end of "+d.name, func() (bool, error) { return !d.Running(), nil })
	if err != nil {
		return 0, err
	}
	return d.cmd.ProcessState.ExitCode(), nil
}

// Stop sends SIGTERM. It is an error if the daemon takes longer than [StopLimit],
// which kills it, or ends with an exit code other than 0. A daemon that has ended is
// one already stopped.
func (d *Daemon) Stop() (took time.Duration, err error) {
	if !d.Running() {
		return 0, nil
	}
	begun := time.Now()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("stopping %s: %w", d.name, err)
	}
	select {
	case <-d.exited:
	case <-time.After(StopLimit):
		return StopLimit, errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM: %s", d.name, StopLimit, d.Log()), d.Kill())
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		return time.Since(begun), fmt.Errorf("%s ended with exit code %d after SIGTERM: %s", d.name, code, d.Log())
	}
	return time.Since(begun), nil
}

// Kill ends the process without a word to it (SIGKILL), and waits for its end. What
// it started is on its own.
func (d *Daemon) Kill() error {
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s: %w", d.name, err)
	}
	<-d.exited
	return nil
}
