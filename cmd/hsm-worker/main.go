// Command hsm-worker serves one PKCS#11 token to the process that started it: frame in,
// PKCS#11 call, frame out. It takes no argument but --version: its parent starts it with sockets as
// file descriptors 3 and 4.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/hsm/pkcs11"
	"countersign/hsm/wire"
	"countersign/hsm/worker"
	"countersign/internal/harden"
	"countersign/internal/version"
)

// Exit codes.
const (
	exitOK          = 0
	exitUsage       = 2
	exitUnavailable = 69 // module or token absent, or lost
	exitProtocol    = 74 // the parent sent a malformed frame
	exitPIN         = 77
)

// File descriptors that the parent passes: the connection for calls, and a second one
// for canaries, which must not wait behind other calls.
const (
	socket   = 3
	canaries = 4
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, _ io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "--version" {
		_, _ = fmt.Fprintln(stdout, version.Of("hsm-worker"))
		return exitOK
	}
	if len(args) > 0 || !inherited(socket) || !inherited(canaries) {
		_, _ = io.WriteString(stderr, "hsm-worker is started by countersignd, with sockets as file descriptors 3 and 4, and not by hand.\n")
		return exitUsage
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "hsm-worker", Output: stderr, DisableTime: true})
	debug.SetGCPercent(50) // a small heap has fewer copies
	if err := harden.Process(); err != nil {
		log.Error("cannot protect memory", "error", err)
		return exitUnavailable
	}
	conn := wire.NewSocket(socket)
	cfg, err := wire.ReadConfig(conn)
	if err != nil {
		log.Error("no configuration", "error", err)
		return exitProtocol
	}
	return serve(conn, cfg, log)
}

func serve(conn *wire.Socket, cfg wire.Config, log hclog.Logger) int {
	// Each session has a thread in the module or in a read, so none waits for another.
	// One session more than asked for is for canaries.
	sessions := cfg.Sessions + 1
	runtime.GOMAXPROCS(sessions + 1)
	opened := config(cfg, log)
	opened.Sessions = sessions
	token, err := pkcs11.Open(opened)
	if err != nil {
		_ = wire.WriteHello(conn, wire.Hello{}, err) // so does the exit code
		if errors.Is(err, hsm.ErrPIN) {
			return exitPIN
		}
		return exitUnavailable
	}
	if err := wire.WriteHello(conn, wire.Hello{Notices: token.Notices(), Ways: token.Ways(), KEMs: token.KEMs()}, nil); err != nil {
		return exitProtocol
	}
	err = worker.Serve(conn, token, cfg.Sessions, wire.NewSocket(canaries))
	if errors.Is(err, wire.ErrFrame) {
		log.Error("malformed message from parent", "error", err)
		return exitProtocol
	}
	if err != nil {
		return exitUnavailable
	}
	return exitOK
}

func config(cfg wire.Config, log hclog.Logger) pkcs11.Config {
	return pkcs11.Config{
		Module: cfg.Module, TokenLabel: cfg.TokenLabel, TokenSerial: cfg.TokenSerial, PIN: cfg.PIN, Sessions: cfg.Sessions,
		InitArgs: cfg.InitArgs, Require: cfg.Require, HostCheck: cfg.HostCheck, Logger: log,
	}
}

// inherited reports whether a file descriptor is a socket that the parent passed.
func inherited(fd int) bool {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}
