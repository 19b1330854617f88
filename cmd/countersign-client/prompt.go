package main

import (
	"bytes"
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
	"countersign/internal/fault"
	"countersign/internal/secret"
	"countersign/protocol"
)

// approver shows a challenge on standard error and takes the answer from a flag or from the
// terminal.
type approver struct {
	terminal cli.Terminal
	said     *protocol.Verdict // from a flag; nil: ask
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
		return a, fault.CannotAsk.Error()
	}
	return a, nil
}

// interactive reports whether standard input is not a pipe, a file or closed.
func interactive(cmd *cobra.Command) bool {
	f, ok := cmd.InOrStdin().(*os.File)
	return !ok || term.IsTerminal(int(f.Fd()))
}

// Decide shows the challenge and asks. It returns when ctx ends even without an answer.
func (a approver) Decide(ctx context.Context, s client.Shown) (protocol.Verdict, error) {
	if _, err := fmt.Fprint(a.terminal.Err, describe(s)); err != nil {
		return protocol.Refuse, fault.ShowChallenge.Of(err)
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

// VerifyUser asks the user to type yes, where a phone would ask for a fingerprint. --yes counts.
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
		yes, err := a.terminal.ConfirmName("This uses the key that only you may use.", "yes")
		done <- answer{yes, err}
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case got := <-done:
		if got.err == nil && !got.yes {
			return fault.NotVerified.Error()
		}
		return got.err
	}
}

// describe returns the challenge as shown to the user. It quotes and marks the device's words; the
// client supplies or checks everything else.
func describe(s client.Shown) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service:  %s\n", cli.Printable(s.ServiceName))
	if s.Approves != nil {
		fmt.Fprintf(&b, "approves: %s (service %v) for another client\n", cli.Printable(s.ApprovesName), *s.Approves)
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
		fmt.Fprintf(&b, "this client cannot provide factor %v: you can only refuse\n", s.Missing)
	}
	if s.Factors.Has(protocol.FactorStrict) {
		b.WriteString("the device learns who you are\n")
	}
	fmt.Fprintf(&b, "time:     %v left\n", s.TTL.Truncate(time.Second))
	return b.String()
}

// words quotes the device's words. It isolates right-to-left text (Unicode UAX 9, FSI and PDI),
// which could otherwise reorder its surroundings.
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

// maxPasswordBytes is the maximum length of a password line.
const maxPasswordBytes = 1024

// passwordFlags select the source of the password; without a flag the terminal. Arguments and the
// environment would be visible to other users.
type passwordFlags struct {
	fd   int // -1: absent
	file string
}

func addPasswordFlags(cmd *cobra.Command) *passwordFlags {
	f := &passwordFlags{fd: -1}
	cmd.Flags().IntVar(&f.fd, "password-fd", -1, "file descriptor to read the password from, one line per attempt")
	cmd.Flags().StringVar(&f.file, "password-file", "", "file with the password on one line, which no other user can read")
	cmd.MarkFlagsMutuallyExclusive("password-fd", "password-file")
	return f
}

func (f *passwordFlags) given() bool { return f.fd >= 0 || f.file != "" }

// passwords reads the passwords of one command.
type passwords struct {
	cmd   *cobra.Command
	flags *passwordFlags
	lines io.Reader // from the flag's descriptor, once it is in use
	asked bool
}

// Password prompts, or reads the next line from the source in the flags.
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

// read returns the next password from the source in the flags.
func (p *passwords) read() (client.Password, error) {
	if p.flags.file != "" {
		if p.asked {
			return nil, errors.New("the file contains no other password")
		}
		p.asked = true
		return readFile(p.flags.file)
	}
	switch {
	case p.lines != nil:
	case p.flags.fd == 0:
		p.lines = p.cmd.InOrStdin()
	default:
		own, err := syscall.Dup(p.flags.fd) // this command does not own the original
		if err != nil {
			return nil, fault.PasswordDescriptor.With("number", strconv.Itoa(p.flags.fd)).Of(err)
		}
		p.lines = os.NewFile(uintptr(own), "password")
	}
	return readLine(p.lines)
}

// readFile reads a password, before any try is spent.
func readFile(name string) (client.Password, error) {
	password, err := secret.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("password file %w", err)
	}
	if len(password) > maxPasswordBytes {
		return nil, errTooLong()
	}
	return client.Password(password), nil
}

func errTooLong() error {
	return fault.LongPassword.With("bytes", strconv.Itoa(maxPasswordBytes)).Error()
}

// readLine reads byte by byte and leaves the rest unread.
func readLine(r io.Reader) (client.Password, error) {
	line := make(client.Password, 0, maxPasswordBytes)
	var one [1]byte
	for {
		n, err := r.Read(one[:])
		switch {
		case n == 1 && one[0] != '\n' && len(line) == maxPasswordBytes:
			return nil, errTooLong()
		case n == 1 && one[0] != '\n':
			line = append(line, one[0])
		case err != nil && !errors.Is(err, io.EOF):
			return nil, fault.ReadPassword.Of(err)
		case n == 1 && one[0] == '\n', err != nil:
			line = bytes.TrimSuffix(line, []byte("\r"))
			if len(line) == 0 {
				return nil, fault.NoPassword.Error()
			}
			return line, nil
		}
	}
}

// prompt asks without echo. It returns when ctx ends even without an answer.
func prompt(ctx context.Context, cmd *cobra.Command, question string) (client.Password, error) {
	terminal := cli.TerminalOf(cmd)
	terminal.Ctx = ctx
	password, err := terminal.Secret(question)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return password, err
}

// newPassword returns the password to enrol with, nil for none. Without a flag it prompts twice.
// Without a terminal it prints a warning and returns nil.
func (p *passwords) newPassword(none bool) (client.Password, error) {
	switch {
	case none:
		return nil, nil
	case p.flags.given():
		return p.read()
	case !onTerminal(p.cmd):
		fmt.Fprintln(p.cmd.ErrOrStderr(), "no terminal and no password flag: enrolling without a password, so this client can only refuse at level 2 and above")
		return nil, nil
	}
	first, err := prompt(p.cmd.Context(), p.cmd, "new password: ")
	if err != nil {
		return nil, err
	}
	second, err := prompt(p.cmd.Context(), p.cmd, "repeat it: ")
	defer clear(second)
	if err == nil && string(first) != string(second) {
		err = fault.PasswordsDiffer.Error()
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
