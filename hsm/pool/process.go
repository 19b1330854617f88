package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
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
	for {
		select {
		case f := <-p.forks:
			f.done <- f.cmd.Start()
		case <-p.over:
			return
		}
	}
}

// start brings up one worker with its token open and its keys proven. One start,
// and so one login, is made at a time; one that takes longer than leastStart lets
// the next go ahead, for it may hang where a new process would not. may is asked
// when it is this one's turn. The pool stops at a refused PIN before the next one has
// its turn.
func (p *Pool) start(ctx context.Context, limit time.Duration, may func() error) (*link, error) {
	select {
	case p.turnstile <- struct{}{}:
	case <-p.closed:
		return nil, ErrClosed
	}
	next := sync.OnceFunc(func() { <-p.turnstile })
	defer next()
	if err := may(); err != nil {
		return nil, err
	}
	defer time.AfterFunc(leastStart, next).Stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	began := time.Now()
	c, err := p.spawn(ctx)
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
	p.took(time.Since(began))
	p.cfg.Logger.Info("worker ready", "pid", l.pid())
	return l, nil
}

// took remembers the longest start that ended well.
func (p *Pool) took(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.longest = max(p.longest, d)
}

// startLimit is how long the n-th start in a row of a supervisor may take, which
// replaces a worker: three times the longest that ended well. That a token may have
// become slower, every other supervisor finds out by waiting for long; the others
// give up early, for a start that hangs finds no token that is well again.
func (p *Pool) startLimit(slot, n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > 0 && (slot+n*p.alone())%2 == 0 {
		return startTimeout
	}
	return min(max(3*p.longest, leastStart), startTimeout)
}

// alone is 1 where there is one supervisor, which does both by turns.
func (p *Pool) alone() int {
	if p.cfg.Workers == 1 {
		return 1
	}
	return 0
}

// introduce sends the configuration and waits for the token to be open.
func (p *Pool) introduce(ctx context.Context, c child) error {
	unblock := context.AfterFunc(ctx, c.sock.Shutdown)
	defer unblock()
	pin, err := p.pin()
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

// pin is the PIN of the vault, for the caller to erase.
func (p *Pool) pin() (hsm.PIN, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.vault.read()
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
	select {
	case p.forks <- f:
	case <-p.over:
		return nil, ErrClosed
	}
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
