package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"countersign/internal/fault"
	"countersign/internal/secret"
)

// Activation is where a command gets an activation code from: a file, standard input, a question on the
// terminal, or its arguments, which other users can see in the process list.
type Activation struct{ file string }

// CodeHelp describes the sources for a help text.
const CodeHelp = "CODE comes from --code-file, or from standard input (if that is not a terminal, or CODE is -), or the\n" +
	"command asks for it. Do not give it as an argument on a machine with other users: they see arguments in the\n" +
	"process list."

// maxCode bounds an activation code, in bytes.
const maxCode = 256

// AddCodeFlag adds --code-file. The command takes at most one argument, the code.
func AddCodeFlag(cmd *cobra.Command) *Activation {
	c := &Activation{}
	cmd.Flags().StringVar(&c.file, "code-file", "", "file with the activation code, which no other user may read")
	cmd.Args = cobra.MaximumNArgs(1)
	return c
}

// FromInput reports whether Read takes a line of standard input.
func (c *Activation) FromInput(cmd *cobra.Command, args []string) bool {
	if c.file != "" {
		return false
	}
	if len(args) > 0 {
		return args[0] == "-"
	}
	f, ok := cmd.InOrStdin().(*os.File)
	return !ok || !term.IsTerminal(int(f.Fd()))
}

// Read returns the code as it was typed.
func (c *Activation) Read(cmd *cobra.Command, args []string) (string, error) {
	switch {
	case c.file != "" && len(args) > 0:
		return "", fault.TwoCodes.Error()
	case c.file != "":
		raw, err := secret.ReadFile(c.file)
		defer clear(raw)
		return strings.TrimSpace(string(raw)), err
	case c.FromInput(cmd, args):
		line, err := firstLine(io.LimitReader(cmd.InOrStdin(), maxCode))
		return line, fault.NoCode.Of(err)
	case len(args) > 0:
		fmt.Fprintln(cmd.ErrOrStderr(),
			"warning: other users can see a code on the command line: use --code-file, or write it to standard input")
		return args[0], nil
	}
	raw, err := TerminalOf(cmd).Secret("Activation code: ")
	defer clear(raw)
	return strings.TrimSpace(string(raw)), err
}

// firstLine reads no further than the end of the line: what follows may be a password.
func firstLine(r io.Reader) (string, error) {
	var line []byte
	var one [1]byte
	for {
		n, err := r.Read(one[:])
		switch {
		case n == 1 && one[0] != '\n':
			line = append(line, one[0])
		case n == 1, errors.Is(err, io.EOF) && len(line) > 0:
			return strings.TrimSpace(string(line)), nil
		case errors.Is(err, io.EOF):
			return "", errors.New("standard input has no activation code")
		case err != nil:
			return "", fmt.Errorf("reading the activation code: %w", err)
		}
	}
}
