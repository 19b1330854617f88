package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// fork is a command to be started and where its error goes.
type fork struct {
	cmd  *exec.Cmd
	done chan error
}

// fork starts all processes from one thread of its own, which lives as long as
// the pool: the kernel kills a child with PDEATHSIG when the thread that
// started it ends, not when the process does.
func (p *Pool) fork() {
	runtime.LockOSThread()
	for f := range p.forks {
		f.done <- f.cmd.Start()
	}
}

// start brings up one worker, unless the pool has stopped.
func (p *Pool) start(ctx context.Context) (*link, error) {
	p.starting.Lock()
	defer p.starting.Unlock()
	if err := p.stopReason(); err != nil {
		return nil, err
	}
	return p.launch(ctx)
}

// launch brings up one worker with its token open and its keys proven. The first
// refused PIN stops the pool, and nobody who waited for the turn tries it again.
// Callers hold starting.
func (p *Pool) launch(ctx context.Context) (*link, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.startLimit())
	defer cancel()
	var c child
	err := p.cfg.Guard.Try(func() (err error) {
		c, err = p.spawn(ctx)
		return err
	})
	if err != nil {
		p.stopIfRefused(err)
		return nil, fmt.Errorf("starting worker: %w", err)
	}
	l := p.linked(c)
	if err := p.prove(ctx, l); err != nil {
		l.fail(err)
		l.end()
		return nil, fmt.Errorf("starting worker: %w", outward(err))
	}
	p.longest = max(p.longest, time.Since(began))
	p.cfg.Logger.Info("worker ready", "pid", l.pid())
	return l, nil
}

// startLimit is how long a start may take: one that hangs keeps the next from
// being tried, which may find the token well again.
func (p *Pool) startLimit() time.Duration {
	if p.longest == 0 {
		return startTimeout
	}
	return min(max(3*p.longest, leastStart), startTimeout)
}

// introduce sends the configuration and waits for the token to be open.
func (p *Pool) introduce(ctx context.Context, c child) error {
	unblock := context.AfterFunc(ctx, c.sock.Shutdown)
	defer unblock()
	pin, err := p.vault.read()
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	defer pin.Zero()
	err = wire.WriteConfig(c.sock, wire.Config{
		Module: p.cfg.Module, TokenLabel: p.cfg.TokenLabel, TokenSerial: p.cfg.TokenSerial,
		PIN: pin, Sessions: p.cfg.Sessions, InitArgs: p.cfg.InitArgs, Require: p.cfg.Require,
	})
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	hello, err := wire.ReadHello(c.sock)
	if err != nil {
		return err
	}
	for _, n := range hello.Notices {
		p.cfg.Logger.Warn("module is limited", "notice", n)
	}
	return errors.Join(c.sock.Tick(tick), c.lane.Tick(tick))
}

// process is a running worker. Its owner is the link, which ends it.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once it was waited for
}

// child is a process that was started, and this side of its sockets.
type child struct {
	proc       *process
	sock, lane *wire.Socket
}

func (c child) end() {
	c.sock.Shutdown()
	c.lane.Shutdown()
	c.proc.end()
	_ = c.sock.Close()
	_ = c.lane.Close()
}

// spawn starts a process and has it open its token.
func (p *Pool) spawn(ctx context.Context) (child, error) {
	c, err := p.fresh()
	if err != nil {
		return c, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	if err := p.introduce(ctx, c); err != nil {
		c.end()
		return c, err
	}
	return c, nil
}

// fresh is a process that was just started.
func (p *Pool) fresh() (c child, err error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return c, err
	}
	defer theirs.Close() // the child has its own
	ourLane, theirLane, err := wire.Pair()
	if err != nil {
		return c, errors.Join(err, ours.Close())
	}
	defer theirLane.Close()
	proc, err := p.run(theirs, theirLane)
	if err != nil {
		return c, errors.Join(err, ours.Close(), ourLane.Close())
	}
	return child{proc, ours, ourLane}, nil
}

// linked makes a child that has introduced itself a worker. A lane that is lost
// takes its link along.
func (p *Pool) linked(c child) *link {
	l := newLink(c.sock, c.proc)
	l.pace.sessions, l.pace.queue = p.cfg.Sessions, p.cfg.Timeout/10
	l.changed = p.judge
	l.lane = newLink(c.lane, c.proc)
	go func() {
		select {
		case <-l.lane.done:
			l.fail(l.lane.failure())
		case <-l.done:
		}
	}()
	return l
}

// run starts hsm-worker with these files as descriptors 3 and up.
func (p *Pool) run(files ...*os.File) (*process, error) {
	cmd := exec.Command(p.cfg.Binary)
	cmd.ExtraFiles = files
	cmd.Stderr = p.cfg.Logger.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})
	cmd.WaitDelay = time.Second
	// A group of its own: Ctrl-C in a terminal is for the parent, which ends
	// its workers after the calls under way.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	f := fork{cmd, make(chan error, 1)}
	p.forks <- f
	if err := <-f.done; err != nil {
		return nil, err
	}
	proc := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(proc.exited)
	}()
	return proc, nil
}

// end waits for a process whose socket is closed, and kills it when it stays.
func (p *process) end() {
	select {
	case <-p.exited:
		return
	case <-time.After(grace):
	}
	p.kill()
	<-p.exited
}

func (p *process) kill() { _ = p.cmd.Process.Kill() } // it may have ended by itself
