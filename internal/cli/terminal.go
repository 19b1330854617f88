package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"countersign/internal/fault"
)

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 4096

// Terminal asks the user. Questions go to Err, never among the data. When Ctx ends, as after Ctrl-C, a question returns
// its error and reads no further input.
type Terminal struct {
	Ctx context.Context
	In  io.Reader
	Err io.Writer
}

// TerminalOf returns the terminal of a command that [Main] runs.
func TerminalOf(cmd *cobra.Command) Terminal {
	return Terminal{Ctx: cmd.Context(), In: cmd.InOrStdin(), Err: cmd.ErrOrStderr()}
}

// Secret asks for a PIN or a password without echo. It reads from standard
// input if that is a terminal, else from the controlling terminal, and never
// from a pipe. An error has exit code 77.
func (t Terminal) Secret(question string) ([]byte, error) {
	if f, ok := t.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return t.hidden(f, question)
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fault.NoTerminal.Error()
	}
	secret, err := t.hidden(tty, question)
	return secret, errors.Join(err, tty.Close())
}

func (t Terminal) hidden(f *os.File, question string) ([]byte, error) {
	fmt.Fprint(t.Err, printable(question))
	fd := int(f.Fd())
	echoing, _ := term.GetState(fd) // ReadPassword returns its error
	secret, err := await(t.Ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(t.Err)
	switch {
	case t.Ctx.Err() != nil:
		if echoing != nil {
			_ = term.Restore(fd, echoing) // the shell does so too
		}
		clear(secret)
		return nil, t.Ctx.Err()
	case err != nil:
		return nil, fault.ReadSecret.Of(err)
	case len(secret) == 0:
		return nil, fault.NoSecret.Error()
	}
	return secret, nil
}

// Confirm asks a question of yes or no; only "y" and "yes" are yes. Input that
// has ended is an error with exit code 2.
func (t Terminal) Confirm(question string) (bool, error) {
	answer, err := t.ask(question + " [y/N] ")
	switch strings.ToLower(answer) {
	case "y", "yes":
		return err == nil, err
	}
	return false, err
}

// ConfirmName has the user type a name before something is destroyed; it must
// be equal to the letter. Input that has ended is an error with exit code 2.
func (t Terminal) ConfirmName(question, name string) (bool, error) {
	answer, err := t.ask(fmt.Sprintf("%s Type %s to continue: ", question, name))
	return err == nil && name != "" && answer == name, err
}

func (t Terminal) ask(question string) (string, error) {
	fmt.Fprint(t.Err, printable(question))
	answer, err := await(t.Ctx, t.line)
	if t.Ctx.Err() != nil {
		fmt.Fprintln(t.Err)
	}
	return answer, err
}

// await returns the result of read. If ctx ends first, it returns the error of ctx, and read continues in its goroutine.
func await[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// line reads one line byte by byte and leaves the rest in In.
func (t Terminal) line() (string, error) {
	var line []byte
	var one [1]byte
	for len(line) < maxAnswer {
		n, err := t.In.Read(one[:])
		switch {
		case n == 1 && one[0] == '\n':
			return strings.TrimSpace(string(line)), nil
		case n == 1:
			line = append(line, one[0])
		case errors.Is(err, io.EOF):
			fmt.Fprintln(t.Err)
			return "", fault.NoAnswer.Error()
		case err != nil:
			return "", fault.ReadAnswer.Of(err)
		}
	}
	return "", fault.LongAnswer.With("bytes", strconv.Itoa(maxAnswer)).Error()
}
