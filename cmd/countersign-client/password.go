package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"countersign/client"
	"countersign/internal/cli"
)

// maxPasswordBytes bounds a line with a password.
const maxPasswordBytes = 1024

// passwordFlags say where the password comes from; neither: it is asked for on the
// terminal. It is never an argument, nor in the environment, which others can read.
type passwordFlags struct {
	fd   int // -1: not given
	file string
}

func addPasswordFlags(cmd *cobra.Command) *passwordFlags {
	f := &passwordFlags{fd: -1}
	cmd.Flags().IntVar(&f.fd, "password-fd", -1, "read the password from this open file descriptor, one line for each try")
	cmd.Flags().StringVar(&f.file, "password-file", "", "read the password from the first line of this file, mode 0600")
	cmd.MarkFlagsMutuallyExclusive("password-fd", "password-file")
	return f
}

func (f *passwordFlags) given() bool { return f.fd >= 0 || f.file != "" }

// passwords is where passwords come from, for one run of a command.
type passwords struct {
	cmd   *cobra.Command
	flags *passwordFlags
	lines io.Reader // of the flag's descriptor, once it was used
	asked bool
}

// Password prompts, or takes the next line of what the flags name.
func (p *passwords) Password(ctx context.Context, ask client.PasswordAsk) (client.Password, error) {
	if ask.TriesLeft != nil {
		fmt.Fprintf(p.cmd.ErrOrStderr(), "wrong password, %s left\n", tries(*ask.TriesLeft))
	}
	if p.flags.given() {
		return p.read()
	}
	return prompt(ctx, p.cmd, "password: ")
}

func tries(n uint64) string {
	if n == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", n)
}

// read gives the next password that the flags name.
func (p *passwords) read() (client.Password, error) {
	if p.flags.file != "" {
		if p.asked {
			return nil, errors.New("the file holds no other password")
		}
		p.asked = true
		return readFile(p.flags.file)
	}
	switch {
	case p.lines != nil:
	case p.flags.fd == 0:
		p.lines = p.cmd.InOrStdin()
	default:
		own, err := syscall.Dup(p.flags.fd) // the other one is not this command's to close
		if err != nil {
			return nil, cli.Fail(cli.IO, fmt.Errorf("password file descriptor %d: %w", p.flags.fd, err), "")
		}
		p.lines = os.NewFile(uintptr(own), "password")
	}
	return readLine(p.lines)
}

func readFile(name string) (secret client.Password, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, cli.Fail(cli.IO, fmt.Errorf("password file: %w", err), "")
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, cli.Fail(cli.IO, fmt.Errorf("password file: %w", err), "")
	case info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0:
		return nil, cli.Fail(cli.Auth, fmt.Errorf("password file %s may be read by others (mode %#o)", name, info.Mode().Perm()),
			"chmod 600 it, and change the password if others could read it")
	}
	return readLine(f)
}

// readLine reads byte by byte, so that what follows stays there.
func readLine(r io.Reader) (client.Password, error) {
	line := make(client.Password, 0, maxPasswordBytes)
	var one [1]byte
	for {
		n, err := r.Read(one[:])
		switch {
		case n == 1 && one[0] != '\n' && len(line) == maxPasswordBytes:
			return nil, cli.Fail(cli.Usage, fmt.Errorf("password of more than %d bytes", maxPasswordBytes), "")
		case n == 1 && one[0] != '\n':
			line = append(line, one[0])
		case err != nil && !errors.Is(err, io.EOF):
			return nil, cli.Fail(cli.IO, fmt.Errorf("reading the password: %w", err), "")
		case n == 1 && one[0] == '\n', err != nil:
			if len(line) == 0 {
				return nil, cli.Fail(cli.Auth, errors.New("there is no password to read"), "")
			}
			return line, nil
		}
	}
}

// prompt asks without echo. It returns when ctx ends even if nobody answers, and
// gives the terminal its echo back.
func prompt(ctx context.Context, cmd *cobra.Command, question string) (client.Password, error) {
	restore := echo(cmd)
	type answer struct {
		secret []byte
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		secret, err := cli.TerminalOf(cmd).Secret(question)
		done <- answer{secret, err}
	}()
	select {
	case <-ctx.Done():
		restore()
		return nil, context.Cause(ctx)
	case got := <-done:
		return got.secret, got.err
	}
}

// echo gives what puts the terminal back as it is now.
func echo(cmd *cobra.Command) (restore func()) {
	f, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		var err error
		if f, err = os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
			return func() {}
		}
	}
	state, err := term.GetState(int(f.Fd()))
	if err != nil {
		return func() {}
	}
	return func() { _ = term.Restore(int(f.Fd()), state) } // nothing else could be done
}

// newPassword is the password to enrol with; nil: none. Without a flag it is asked
// for twice on a terminal; where there is none the client does without, and says so.
func (p *passwords) newPassword(none bool) (client.Password, error) {
	switch {
	case none:
		return nil, nil
	case p.flags.given():
		return p.read()
	case !onTerminal(p.cmd):
		fmt.Fprintln(p.cmd.ErrOrStderr(), "no terminal and no password flag: enrolling without a password, so level 2 and above is refused here")
		return nil, nil
	}
	first, err := prompt(p.cmd.Context(), p.cmd, "new password: ")
	if err != nil {
		return nil, err
	}
	second, err := prompt(p.cmd.Context(), p.cmd, "the same again: ")
	defer clear(second)
	if err == nil && string(first) != string(second) {
		err = cli.Fail(cli.Auth, errors.New("the two passwords are not the same"), "run it again")
	}
	if err != nil {
		clear(first)
		return nil, err
	}
	return first, nil
}

func onTerminal(cmd *cobra.Command) bool {
	f, ok := cmd.InOrStdin().(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
