// Package errand runs one hsm-worker process for one job: a module is looked at,
// tried or measured where it cannot harm the process that asks.
package errand

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"countersign/hsm"
	"countersign/hsm/sheet"
	"countersign/hsm/wire"
)

// farewell is how long a worker that is no longer listened to may take to remove
// what it made; then it is killed.
const farewell = 10 * time.Second

// Errand is a job and what it is done on.
type Errand struct {
	Binary string // path of hsm-worker
	Job    sheet.Job
	Token  wire.Config // the PIN is erased by Run; empty for [sheet.Slots]
	Order  sheet.Order
	Stderr io.Writer // log of the worker
}

// Run does an errand and reads its report into a pointer. When ctx ends, the
// worker is told, removes its keys from the token and ends before Run returns. A
// refused PIN is [hsm.ErrPIN] after one try; no worker, module, token or report is
// [hsm.ErrUnavailable].
func Run(ctx context.Context, e Errand, report any) error {
	defer e.Token.PIN.Zero()
	if err := ctx.Err(); err != nil {
		return err
	}
	sock, ended, err := e.start()
	if err != nil {
		return fmt.Errorf("starting worker: %v: %w", err, hsm.ErrUnavailable)
	}
	unblock := context.AfterFunc(ctx, sock.Shutdown)
	err = e.converse(sock, report)
	unblock()
	_ = sock.Close() // the worker ends when it reads this
	ended()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", e.Job, ctx.Err())
	}
	return err
}

func (e Errand) converse(sock *wire.Socket, report any) error {
	if err := wire.WriteConfig(sock, e.Token); err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	if err := wire.WriteOrder(sock, e.Order); err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	return wire.ReadReport(sock, report)
}

// start starts the worker. It is in a group of its own, for an interrupt from the
// terminal is to reach it through the socket, and it outlives a killed parent for
// as long as it takes to clean up.
func (e Errand) start() (sock *wire.Socket, ended func(), err error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close() // the child has its own
	cmd := exec.Command(e.Binary, string(e.Job))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, e.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, nil, err
	}
	return ours, func() {
		late := time.AfterFunc(farewell, func() { _ = cmd.Process.Kill() }) // it may have ended by itself
		defer late.Stop()
		_ = cmd.Wait() // what matters it has reported
	}, nil
}
