package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"golang.org/x/text/unicode/bidi"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/protocol"
)

// approver shows a challenge on standard error and takes the answer from a flag
// or from the terminal.
type approver struct {
	terminal cli.Terminal
	said     *protocol.Verdict // by flag; nil: ask
}

func newApprover(cmd *cobra.Command, yes, refuse bool) (approver, error) {
	a := approver{terminal: cli.TerminalOf(cmd)}
	said := protocol.Refuse
	switch {
	case yes:
		said = protocol.Approve
		a.said = &said
	case refuse:
		a.said = &said
	case !interactive(cmd):
		return a, cli.Fail(cli.Usage, errors.New("nobody to ask: standard input is no terminal"),
			"give --yes or --refuse")
	}
	return a, nil
}

// interactive is false for a standard input that is a pipe, a file or closed.
func interactive(cmd *cobra.Command) bool {
	f, ok := cmd.InOrStdin().(*os.File)
	return !ok || term.IsTerminal(int(f.Fd()))
}

// Decide shows, then asks. It returns when ctx ends even if nobody answers.
func (a approver) Decide(ctx context.Context, s client.Shown) (protocol.Verdict, error) {
	if _, err := fmt.Fprint(a.terminal.Err, describe(s)); err != nil {
		return protocol.Refuse, cli.Fail(cli.IO, fmt.Errorf("showing the challenge: %w", err), "")
	}
	if a.said != nil {
		return *a.said, nil
	}
	type answer struct {
		yes bool
		err error
	}
	done := make(chan answer, 1)
	go func() {
		yes, err := a.terminal.Confirm("approve?")
		done <- answer{yes, err}
	}()
	select {
	case <-ctx.Done():
		return protocol.Refuse, context.Cause(ctx)
	case got := <-done:
		if got.yes {
			return protocol.Approve, got.err
		}
		return protocol.Refuse, got.err
	}
}

// VerifyUser has the user type yes, as a phone would ask for a fingerprint; --yes
// counts.
func (a approver) VerifyUser(ctx context.Context, _ client.Shown) error {
	if a.said != nil {
		return nil
	}
	type answer struct {
		yes bool
		err error
	}
	done := make(chan answer, 1)
	go func() {
		yes, err := a.terminal.ConfirmName("This is signed with the key that only you may use.", "yes")
		done <- answer{yes, err}
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case got := <-done:
		if got.err == nil && !got.yes {
			return cli.Fail(cli.Auth, errors.New("the user was not verified"), "")
		}
		return got.err
	}
}

// describe is what the user sees. What the device says is quoted and marked; what is
// not quoted comes from this client or is checked by it.
func describe(s client.Shown) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service:  %s\n", s.ServiceName)
	if s.Approves != nil {
		fmt.Fprintf(&b, "approves: %s (service %v) for another client\n", s.ApprovesName, *s.Approves)
	}
	if s.Asked != nil {
		fmt.Fprintf(&b, "asks for: %v\n", *s.Asked)
	}
	if s.Amount != nil {
		fmt.Fprintf(&b, "amount:   %s\n", formatAmount(s.Amount))
	}
	fmt.Fprintf(&b, "device:   %s (%v)\n", words(s.DeviceName), s.Device)
	if s.Text != "" {
		fmt.Fprintf(&b, "the device says: %s\n", words(s.Text))
	}
	fmt.Fprintf(&b, "level:    %v\n", s.Level)
	if s.Missing != 0 {
		fmt.Fprintf(&b, "this client cannot give factor %v: you can only refuse\n", s.Missing)
	}
	if s.Factors.Has(protocol.FactorStrict) {
		b.WriteString("the device learns who you are\n")
	}
	fmt.Fprintf(&b, "time:     %v left\n", s.TTL.Truncate(time.Second))
	return b.String()
}

// words quotes what the device says. Words that run from right to left are isolated
// (Unicode UAX 9, FSI and PDI), so that they cannot reorder what stands beside them.
func words(s string) string {
	for i := 0; i < len(s); {
		p, size := bidi.LookupString(s[i:])
		if c := p.Class(); c == bidi.R || c == bidi.AL {
			return "\u2068" + strconv.Quote(s) + "\u2069"
		}
		i += max(size, 1)
	}
	return strconv.Quote(s)
}

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
