package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	if c.Stderr != nil {
		d.cmd.Stderr = c.Stderr
	}
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

// Signal sends a signal to the process and to each process that it started.
func (d *Daemon) Signal(s syscall.Signal) error {
	children, err := d.Children()
	if err != nil {
		return err
	}
	for _, c := range append(children, Process{PID: d.PID()}) {
		if err := syscall.Kill(c.PID, s); err != nil {
			return fmt.Errorf("%v to process %d: %w", s, c.PID, err)
		}
	}
	return nil
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

// Process is a process that a daemon started. The start time distinguishes it from a later process
// with the same id.
type Process struct {
	PID   int
	Name  string // as the kernel has it: 15 bytes of the program's name
	start string // clock ticks since boot
	state string // one letter, proc(5)
	ppid  int
}

// Children lists the processes that a daemon has started and that have not ended.
func (d *Daemon) Children() ([]Process, error) { return Process{PID: d.PID()}.Children() }

// Children lists the processes that a process has started and that have not ended.
func (p Process) Children() ([]Process, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var children []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			return nil, err
		}
		child, err := readProcess(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if child.ppid == p.PID && !child.ended() {
			children = append(children, child)
		}
	}
	return children, nil
}

// KillAll is Kill, and waits until nothing that the daemon started is left.
func (d *Daemon) KillAll(ctx context.Context) error {
	children, err := d.Children()
	if err != nil {
		return err
	}
	if err := d.Kill(); err != nil {
		return err
	}
	for _, c := range children {
		if err := c.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// readProcess reads /proc/PID/stat, proc(5): the name is in parentheses and may
// hold any byte, the other fields follow.
func readProcess(pid int) (Process, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	text := string(raw)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Process{}, fmt.Errorf("process %d: no name in its stat", pid)
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("process %d: %d fields in its stat", pid, len(fields))
	}
	p := Process{PID: pid, Name: text[open+1 : end], state: fields[0], start: fields[19]}
	p.ppid, err = strconv.Atoi(fields[1])
	return p, err
}

// ended: a zombie has ended, and its parent has not waited for it.
func (p Process) ended() bool { return p.state == "Z" || p.state == "X" }

// Running says whether this very process has not ended.
func (p Process) Running() (bool, error) {
	now, err := readProcess(p.PID)
	if gone(err) {
		return false, nil
	}
	return err == nil && now.start == p.start && !now.ended(), err
}

// Kill sends SIGKILL; Wait waits for the end.
func (p Process) Kill() error {
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !gone(err) {
		return fmt.Errorf("killing %s: %w", p.Name, err)
	}
	return nil
}

// Wait waits for the end of the process.
func (p Process) Wait(ctx context.Context) error {
	return Until(ctx, fmt.Sprintf("the end of %s (%d)", p.Name, p.PID), func() (bool, error) {
		running, err := p.Running()
		return !running, err
	})
}
