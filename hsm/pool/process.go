package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// fork is a command to start, and where its error goes.
type fork struct {
	cmd  *exec.Cmd
	done chan error
}

// forkLoop starts all processes from one thread, which lives as long as the pool: the
// kernel kills a child with PDEATHSIG when the thread that started it ends, not when the
// process does.
func (p *Pool) forkLoop() {
	runtime.LockOSThread()
	for {
		select {
		case f := <-p.forks:
			f.done <- f.cmd.Start()
		case <-p.forksEnd:
			return
		}
	}
}

// start starts one worker, opens its token and proves its keys. One start, and so one
// login, is made at a time; one that takes longer than leastStart lets the next go ahead,
// for it may hang where a new process would not. may is called when it is this start's
// turn. A refused PIN stops the pool before the next start has its turn.
func (p *Pool) start(ctx context.Context, limit time.Duration, may func() error) (*conn, error) {
	select {
	case p.startSlot <- struct{}{}:
	case <-p.closed:
		return nil, ErrClosed
	}
	next := sync.OnceFunc(func() { <-p.startSlot })
	defer next()
	if err := may(); err != nil {
		return nil, err
	}
	defer time.AfterFunc(leastStart, next).Stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	began := time.Now()
	w, err := p.spawn(ctx)
	if err != nil {
		p.stopIfRefused(err)
		return nil, fmt.Errorf("starting worker: %w", err)
	}
	c := p.connect(w)
	if err := p.prove(ctx, c); err != nil {
		c.fail(err)
		c.end()
		if ctx.Err() != nil { // the limit, or the pool was closed
			err = fmt.Errorf("%w: %w", err, hsm.ErrUnavailable)
		}
		return nil, fmt.Errorf("starting worker: %w", public(err))
	}
	p.noteStart(time.Since(began))
	p.cfg.Logger.Info("worker ready", "pid", c.pid())
	return c, nil
}

// noteStart remembers the longest start that succeeded.
func (p *Pool) noteStart(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.longest = max(p.longest, d)
}

// startLimit returns how long the n-th start in a row of a supervisor may take: three
// times the longest that succeeded. The token may have become slower; every other
// supervisor finds that out by waiting for long. The others give up early, because a
// start that hangs does not notice that the token is well again. A single supervisor does
// both in turn.
func (p *Pool) startLimit(slot, n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Workers == 1 {
		slot += n
	}
	if n > 0 && slot%2 == 0 {
		return startTimeout
	}
	return min(max(3*p.longest, leastStart), startTimeout)
}

// process is a running hsm-worker. It belongs to a conn, which ends it.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once it was waited for
	killed atomic.Bool   // by this process
}

// startedProcess is a process with this side of its two sockets.
type startedProcess struct {
	proc           *process
	sock, canaries *wire.Socket
}

func (w startedProcess) end() {
	w.sock.Shutdown()
	w.canaries.Shutdown()
	w.proc.end()
	_ = w.sock.Close()
	_ = w.canaries.Close()
}

// spawn starts a process and has it open its token.
func (p *Pool) spawn(ctx context.Context) (startedProcess, error) {
	w, err := p.startProcess()
	if err != nil {
		return w, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	if err := p.handshake(ctx, w); err != nil {
		w.end()
		return w, w.proc.outlived(err)
	}
	return w, nil
}

func (p *Pool) startProcess() (w startedProcess, err error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return w, err
	}
	defer theirs.Close() // the child has its own
	ourCanaries, theirCanaries, err := wire.Pair()
	if err != nil {
		return w, errors.Join(err, ours.Close())
	}
	defer theirCanaries.Close()
	proc, err := p.run(theirs, theirCanaries)
	if err != nil {
		return w, errors.Join(err, ours.Close(), ourCanaries.Close())
	}
	return startedProcess{proc, ours, ourCanaries}, nil
}

// run starts hsm-worker with these files as descriptors 3 and up.
func (p *Pool) run(files ...*os.File) (*process, error) {
	cmd := exec.Command(p.cfg.Binary)
	cmd.ExtraFiles = files
	cmd.Stderr = p.cfg.Logger.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})
	cmd.WaitDelay = time.Second
	// In a process group of its own: Ctrl-C in a terminal is for the parent, which ends
	// its workers after the calls under way.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	f := fork{cmd, make(chan error, 1)}
	select {
	case p.forks <- f:
	case <-p.forksEnd:
		return nil, ErrClosed
	}
	if err := <-f.done; err != nil {
		return nil, err
	}
	proc := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // cmd.ProcessState says how it ended
		close(proc.exited)
	}()
	return proc, nil
}

// handshake sends the configuration and waits until the token is open.
func (p *Pool) handshake(ctx context.Context, w startedProcess) error {
	unblock := context.AfterFunc(ctx, w.sock.Shutdown)
	defer unblock()
	pin, err := p.readPIN()
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	defer pin.Zero()
	err = wire.WriteConfig(w.sock, wire.Config{
		Module: p.cfg.Module, TokenLabel: p.cfg.TokenLabel, TokenSerial: p.cfg.TokenSerial,
		PIN: pin, Sessions: p.cfg.Sessions, InitArgs: p.cfg.InitArgs, Require: p.cfg.Require,
		HostCheck: p.cfg.HostCheck,
	})
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	hello, err := wire.ReadHello(w.sock)
	if err != nil {
		return err
	}
	for _, n := range hello.Notices {
		p.cfg.Logger.Warn("module is limited", "notice", n)
	}
	if err := p.noteWays(hello); err != nil {
		return err
	}
	return errors.Join(w.sock.Tick(tick), w.canaries.Tick(tick))
}

// noteWays logs how the module is used, once and when it changes. A worker that would use it otherwise
// than those that are running may have started during a fault, and is refused.
func (p *Pool) noteWays(hello wire.Hello) error {
	before, ways := p.opened.Load(), hello.Ways
	switch {
	case before != nil && slices.Equal(before.Ways, ways):
		return nil
	case before != nil && len(*p.live.Load()) > 0:
		return fmt.Errorf("it would use the module otherwise than the other workers, %s: %w", strings.Join(ways, "; "), hsm.ErrUnavailable)
	}
	p.opened.Store(&hello)
	p.cfg.Logger.Info("module is used", "ways", strings.Join(ways, "; "))
	return nil
}

// readPIN returns the PIN, which the caller erases.
func (p *Pool) readPIN() (hsm.PIN, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pin.read()
}

// connect makes the conn of a worker whose token is open. If the socket of its canaries
// is lost, so is the conn.
func (p *Pool) connect(w startedProcess) *conn {
	c := newConn(w.sock, w.proc)
	c.pace.sessions, c.pace.queue = p.cfg.Sessions, p.cfg.Timeout/10
	c.changed = p.updateHealth
	c.canaries = newConn(w.canaries, w.proc)
	go func() {
		select {
		case <-c.canaries.done:
			c.fail(c.canaries.failure())
		case <-c.done:
		}
	}()
	return c
}

// end waits for a process whose socket is closed, and kills it if it stays.
func (p *process) end() {
	select {
	case <-p.exited:
		return
	case <-time.After(grace):
	}
	p.kill()
	<-p.exited
}

func (p *process) kill() {
	p.killed.Store(true)
	_ = p.cmd.Process.Kill() // it may have ended
}

// reported are the exit codes with which hsm-worker ends after it has sent an error.
var reported = []int{69, 77}

// outlived adds to the error of a start how the process ended, if that is the cause: by a signal of
// another process or of the kernel, or with an exit code that hsm-worker has no error for. The process
// has ended.
func (p *process) outlived(err error) error {
	state := p.cmd.ProcessState
	if p.killed.Load() || state.Success() || slices.Contains(reported, state.ExitCode()) {
		return err
	}
	return fmt.Errorf("%s ended (%s): %w", p.cmd.Path, state, err)
}
