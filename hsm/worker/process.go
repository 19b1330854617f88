package worker

import (
	"context"
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

// start brings up one worker with its token open. The first refused PIN stops
// the pool, and nobody who waited for the turn tries it again.
func (p *Pool) start(ctx context.Context) (*link, error) {
	p.starting.Lock()
	defer p.starting.Unlock()
	if err := p.stopReason(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	sock, proc, err := p.spawn()
	if err != nil {
		return nil, fmt.Errorf("starting worker: %v: %w", err, hsm.ErrUnavailable)
	}
	hello, err := p.introduce(ctx, sock)
	if err != nil {
		_ = sock.Close()
		proc.end()
		p.stopIfRefused(err)
		return nil, fmt.Errorf("starting worker: %w", err)
	}
	for _, n := range hello.Notices {
		p.cfg.Logger.Warn("module is limited", "notice", n)
	}
	p.cfg.Logger.Info("worker ready", "pid", proc.cmd.Process.Pid)
	return newLink(sock, proc, p.cfg.Timeout), nil
}

// introduce sends the configuration and waits for the token to be open.
func (p *Pool) introduce(ctx context.Context, sock *wire.Socket) (wire.Hello, error) {
	unblock := context.AfterFunc(ctx, sock.Shutdown)
	defer unblock()
	err := wire.WriteConfig(sock, wire.Config{
		Module: p.cfg.Module, TokenLabel: p.cfg.TokenLabel, TokenSerial: p.cfg.TokenSerial,
		PIN: p.cfg.PIN, Sessions: p.cfg.Sessions, InitArgs: p.cfg.InitArgs, Require: p.cfg.Require,
	})
	if err != nil {
		return wire.Hello{}, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	hello, err := wire.ReadHello(sock)
	if err != nil {
		return wire.Hello{}, err
	}
	return hello, sock.Tick(tick)
}

// process is a running worker. Its owner is the link, which ends it.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once it was waited for
}

func (p *Pool) spawn() (*wire.Socket, *process, error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close() // the child has its own
	cmd := exec.Command(p.cfg.Binary)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = p.cfg.Logger.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})
	cmd.WaitDelay = time.Second
	// A group of its own: Ctrl-C in a terminal is for the parent, which ends
	// its workers after the calls under way.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	f := fork{cmd, make(chan error, 1)}
	p.forks <- f
	if err := <-f.done; err != nil {
		_ = ours.Close()
		return nil, nil, err
	}
	proc := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(proc.exited)
	}()
	return ours, proc, nil
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
