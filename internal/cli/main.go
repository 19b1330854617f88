package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"countersign/internal/fault"
)

// Process gives a command access to the process that it runs in.
type Process struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string // os.Getenv; nil is an empty environment
}

// Main runs a command tree and returns the exit code. An error is printed as
// "error: …" and "hint: …" to standard error. Errors that cobra finds before a
// RunE begins are usage errors, exit code 2, unless they carry another code;
// plain errors of a RunE are exit code 1. The error of a context that
// a signal ended is exit code 130. A command with subcommands only, such
// as a noun without its verb, is a usage error too.
func Main(ctx context.Context, cmd *cobra.Command, p Process) int {
	started := false
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append([]string{}, p.Args...)) // nil would mean os.Args
	cmd.SetIn(p.Stdin)
	cmd.SetOut(p.Stdout)
	cmd.SetErr(p.Stderr)
	cmd.InitDefaultHelpCmd()
	cmd.InitDefaultCompletionCmd(p.Args...)
	prepare(cmd, &started)
	if cmd.RunE != nil {
		addVersion(cmd)
	}

	ran, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return int(fault.OK)
	}
	isCanceled := ctx.Err() != nil && errors.Is(err, context.Canceled) && !isLogged(err)
	if code, _ := codeOf(err); isCanceled && code != fault.Interrupted {
		err = fault.WasInterrupted.Error()
	}
	var known ender
	if !started && !errors.As(err, &known) {
		err = fault.CommandLine.With("command", ran.CommandPath()).Of(err)
	}
	code, hint := codeOf(err)
	if !isLogged(err) {
		report(p, err, hint)
	}
	return int(code)
}

// logged is an error that is in the log of a daemon.
type logged struct{ error }

// Unwrap returns the error.
func (l logged) Unwrap() error { return l.error }

func isLogged(err error) bool {
	var l logged
	return errors.As(err, &l)
}

// EndInLog writes the error that ends a daemon to its log, with exit code and hint, for [Main], which then prints
// nothing. A daemon whose log is JSON calls it, so that every line of standard error is JSON.
func EndInLog(log hclog.Logger, err error) error {
	if err == nil || isLogged(err) {
		return err
	}
	code, hint := codeOf(err)
	log.Error("ended by an error", "error", err, "exit_code", int(code), "hint", hint)
	return logged{err}
}

// prepare notes when a command's own code begins, and makes nouns refuse to run
// without a verb. (cobra would print help and succeed, "client inivte" too.)
func prepare(cmd *cobra.Command, started *bool) {
	switch run, runE := cmd.Run, cmd.RunE; {
	case runE != nil:
		cmd.RunE = func(c *cobra.Command, args []string) error {
			*started = true
			return runE(c, args)
		}
	case run != nil:
		cmd.Run = func(c *cobra.Command, args []string) {
			*started = true
			run(c, args)
		}
	case cmd.HasSubCommands():
		cmd.RunE = needVerb
		cmd.Args = cobra.ArbitraryArgs
		cmd.DisableFlagsInUseLine = true
	}
	for _, sub := range cmd.Commands() {
		prepare(sub, started)
	}
}

func needVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fault.NeedsCommand.With("command", cmd.CommandPath(), "commands", verbs(cmd)).Error()
	}
	suggestion := "one of: " + verbs(cmd)
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		suggestion = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fault.UnknownCommand.With(
		"word", strconv.Quote(args[0]), "command", cmd.CommandPath(), "suggestion", suggestion).Error()
}

func verbs(cmd *cobra.Command) string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return strings.Join(names, ", ")
}

// report prints what happened, then what to do.
func report(p Process, err error, hint string) {
	before, after := "", ""
	if colored(p.Stderr, p.Getenv) {
		before, after = "\x1b[1;31m", "\x1b[0m"
	}
	for line := range strings.SplitSeq(strings.TrimSpace(err.Error()), "\n") {
		fmt.Fprintf(p.Stderr, "%serror:%s %s\n", before, after, printable(line))
	}
	if hint != "" {
		fmt.Fprintf(p.Stderr, "hint: %s\n", printable(hint))
	}
}

// colored follows no-color.org: colour only on a terminal that can show it, and
// never if NO_COLOR is set to anything.
func colored(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	if lines, daemon := w.(*Lines); daemon {
		f = lines.File()
		ok = f != nil
	}
	if !ok || getenv == nil || !term.IsTerminal(int(f.Fd())) {
		return false
	}
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// Printable escapes the control characters of text from others, so that they do not reach a
// terminal.
func Printable(s string) string { return printable(s) }

// PrintableText escapes what a terminal does not show as itself, as [Printable] does, in a text of
// several lines with tabs.
func PrintableText(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		text, ended := strings.CutSuffix(line, "\n")
		for i, part := range strings.Split(text, "\t") {
			if i > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(printable(part))
		}
		if ended {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// printable escapes control characters: names and messages may come from others.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
