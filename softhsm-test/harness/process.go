package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

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
func (d *Daemon) Children() ([]Process, error) {
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
		p, err := readProcess(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p.ppid == d.PID() && !p.ended() {
			children = append(children, p)
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
