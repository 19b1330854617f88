package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"countersign/cmd/hsm-probe/internal/probe"
	"countersign/hsm"
	"countersign/hsm/pkcs11"
	"countersign/hsm/wire"
	"countersign/internal/harden"
)

// A module runs in a child process, where it can hang or crash without harm to the
// command that asked. The child reads the token's configuration with the PIN and the
// order, a JSON message, from a socket; writes its report to a pipe; and ends.

// jobName names what a child does. It is the child's second argument.
type jobName string

// The jobs, each with what it reports.
const (
	slotsJob jobName = "slots" // what the module shows without a login: [report.Module]
	probeJob jobName = "probe" // [report.Sheet]
	loopJob  jobName = "loop"  // raw speed, calls in a C loop: [report.Raw]
	cleanJob jobName = "clean" // destroy what an interrupted job left: [report.Cleaned]
)

var jobs = map[jobName]func(context.Context, pkcs11.Config, probe.Order) (any, error){
	slotsJob: func(_ context.Context, cfg pkcs11.Config, _ probe.Order) (any, error) { return probe.List(cfg) },
	probeJob: func(ctx context.Context, cfg pkcs11.Config, o probe.Order) (any, error) {
		return probe.Run(ctx, cfg, o)
	},
	loopJob: func(ctx context.Context, cfg pkcs11.Config, o probe.Order) (any, error) {
		return probe.Measure(ctx, cfg, o)
	},
	cleanJob: func(_ context.Context, cfg pkcs11.Config, _ probe.Order) (any, error) { return probe.Clean(cfg) },
}

const (
	childArg  = "child" // first argument of a child
	socketFD  = 3
	reportFD  = 4
	maxReport = 4 << 20 // bytes
	// How long a child may take to remove its objects once the parent has given up:
	// then it ends itself, and a moment later the parent kills it.
	childCleanup  = 8 * time.Second
	parentCleanup = 10 * time.Second
)

// answer is what a child writes to its pipe.
type answer struct {
	Report json.RawMessage `json:"report,omitempty"`
	Error  string          `json:"error,omitempty"`
	PIN    bool            `json:"pin,omitempty"` // the error is [hsm.ErrPIN]
}

// jobError has the text of a child's error and its sentinel.
type jobError struct {
	text     string
	sentinel error
}

func (e *jobError) Error() string { return e.text }
func (e *jobError) Unwrap() error { return e.sentinel }

// job is one task for a child.
type job struct {
	name   jobName
	token  wire.Config // run erases the PIN; empty for slotsJob
	order  probe.Order
	binary string    // "" is this program
	stderr io.Writer // the child's log
}

// run does a job and reads its report into a pointer. When ctx ends, the child removes
// its objects from the token and ends before run returns. A refused PIN is [hsm.ErrPIN]
// after one try. Every other failure is [hsm.ErrUnavailable].
func (j job) run(ctx context.Context, into any) error {
	defer j.token.PIN.Zero()
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := j.start()
	if err != nil {
		return fmt.Errorf("starting hsm-probe: %v: %w", err, hsm.ErrUnavailable)
	}
	unblock := context.AfterFunc(ctx, c.giveUp)
	err = c.converse(j, into)
	unblock()
	c.end()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", j.name, ctx.Err())
	}
	return err
}

// running is a child and the parent's ends of its socket and pipe.
type running struct {
	cmd  *exec.Cmd
	sock *wire.Socket
	pipe *os.File
}

// start starts a child in a process group of its own: the terminal's interrupt must
// reach it through the socket only. It outlives a killed parent until it has cleaned up.
func (j job) start() (*running, error) {
	binary := j.binary
	if binary == "" {
		var err error
		if binary, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() // the child has its own
	out, in, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	defer in.Close()
	cmd := exec.Command(binary, childArg, string(j.name))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs, in}, j.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close(), out.Close())
	}
	return &running{cmd, ours, out}, nil
}

func (c *running) converse(j job, into any) error {
	order, err := json.Marshal(j.order)
	if err != nil {
		return err
	}
	if err = wire.WriteConfig(c.sock, j.token); err == nil {
		_, err = c.sock.Write(order)
	}
	if err != nil {
		return fmt.Errorf("writing order: %v: %w", err, hsm.ErrUnavailable)
	}
	var a answer
	err = json.NewDecoder(io.LimitReader(c.pipe, maxReport)).Decode(&a)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("hsm-probe ended without a report: %w", hsm.ErrUnavailable)
	case err == nil && a.PIN:
		return &jobError{a.Error, hsm.ErrPIN}
	case err == nil && a.Error != "":
		return &jobError{a.Error, hsm.ErrUnavailable}
	case err == nil:
		err = json.Unmarshal(a.Report, into)
	}
	if err != nil {
		return fmt.Errorf("reading report: %v: %w", err, hsm.ErrUnavailable)
	}
	return nil
}

// giveUp has the child clean up and end, and kills it if it does not.
func (c *running) giveUp() {
	c.sock.Shutdown()
	time.AfterFunc(parentCleanup, func() { _ = c.cmd.Process.Kill() }) // it may have ended
}

func (c *running) end() {
	c.giveUp()
	_ = c.cmd.Wait() // its report says what matters
	_, _ = c.sock.Close(), c.pipe.Close()
}

// child does one job and returns the exit code.
func child(name jobName, stderr io.Writer) int {
	do, known := jobs[name]
	if !known || !isSocket(socketFD) {
		_, _ = io.WriteString(stderr, "hsm-probe child is started by hsm-probe, not by hand.\n")
		return 2
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "hsm-probe", Output: stderr, DisableTime: true})
	debug.SetGCPercent(50) // a small heap has fewer copies
	if err := harden.Process(); err != nil {
		log.Error("cannot protect memory", "error", err)
		return 1
	}
	conn := wire.NewSocket(socketFD)
	cfg, order, err := readOrder(conn)
	if err != nil {
		log.Error("no order", "error", err)
		return 1
	}
	made, err := do(parentsInterest(conn), pkcs11.Config{
		Module: cfg.Module, TokenLabel: cfg.TokenLabel, TokenSerial: cfg.TokenSerial, PIN: cfg.PIN, InitArgs: cfg.InitArgs, Logger: log,
	}, order)
	var a answer
	if err == nil {
		a.Report, err = json.Marshal(made)
	}
	if err != nil {
		a = answer{Error: err.Error(), PIN: errors.Is(err, hsm.ErrPIN)}
	}
	if err := json.NewEncoder(os.NewFile(reportFD, "report")).Encode(a); err != nil {
		return 1
	}
	return 0
}

func readOrder(conn *wire.Socket) (cfg wire.Config, order probe.Order, err error) {
	if cfg, err = wire.ReadConfig(conn); err != nil {
		return cfg, order, err
	}
	buf := wire.Buffer()
	n, err := conn.Read(buf)
	if err == nil {
		err = json.Unmarshal(buf[:n], &order)
	}
	if err != nil {
		cfg.PIN.Zero()
	}
	return cfg, order, err
}

// parentsInterest returns a context that ends when the parent closes the socket. The
// process ends soon after that even if a module hangs.
func parentsInterest(conn *wire.Socket) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // the parent writes nothing more
		cancel()
		time.AfterFunc(childCleanup, func() { os.Exit(1) })
	}()
	return ctx
}

func isSocket(fd int) bool {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}
