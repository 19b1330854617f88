package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
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
