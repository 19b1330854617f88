// Command hsm-probe tries, measures and names PKCS#11 modules. countersignctl becomes
// it for hsm probe, hsm bench and hsm uri.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"countersign/hsm"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/harden"
)

func main() {
	_ = harden.Process() // the child, which loads the module, requires it
	if len(os.Args) == 3 && os.Args[1] == childArg {
		os.Exit(child(jobName(os.Args[2]), os.Stderr))
	}
	ctx, stop := cli.UntilSignal()
	defer stop()
	p := cli.Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	os.Exit(cli.Main(ctx, root(), p))
}

// tool holds what all commands share.
type tool struct{ format *cli.Format }

// root returns the commands. They are named as the user types them.
func root() *cobra.Command {
	t := &tool{}
	cmd := &cobra.Command{
		Use: "hsm-probe", Short: "Try, measure and name PKCS#11 modules",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "countersignctl hsm"},
	}
	cmd.PersistentFlags().String("admin", "", "") // countersignctl takes it before any command
	_ = cmd.PersistentFlags().MarkHidden("admin") // the flag exists
	t.format = cli.AddOutputFlag(cmd)
	cmd.AddCommand(t.probe(), t.bench(), t.uri(), t.initToken())
	return cmd
}

func (t *tool) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *t.format}
}

// exits is the one table from errors to exit codes and advice.
var exits = []struct {
	err  error
	code cli.Code
	hint string
}{
	{context.Canceled, cli.Interrupted, "its objects on the token were removed, or the next run removes them"},
	{context.DeadlineExceeded, cli.Unavailable, "the module hangs; the next run removes what this one made"},
	{hsm.ErrPIN, cli.Auth, "check the PIN: it was tried at most once and is not tried again, so that the token does not lock"},
	{config.ErrTokenDenied, cli.Unavailable, "run it as a user who may use the token's files, or add this user to their group and log in again"},
	{hsm.ErrUnavailable, cli.Unavailable, "check --module, --token-label and --worker-binary or the configuration; countersignctl hsm uri pkcs11: lists the tokens"},
}

func explain(err error) error {
	for _, row := range exits {
		if errors.Is(err, row.err) {
			return cli.Fail(row.code, err, row.hint)
		}
	}
	return err
}

func number[T uint64 | int](n T) string { return strconv.FormatUint(uint64(n), 10) }

// decimal formats a number with some digits after the point.
func decimal(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }

// inParts prints the parts with an empty line between them.
func inParts(p cli.Printer, parts []func() error) error {
	for i, part := range parts {
		if i > 0 {
			if _, err := fmt.Fprintln(p.Out); err != nil {
				return cli.Fail(cli.IO, fmt.Errorf("writing output: %w", err), "")
			}
		}
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// printLine prints a string on a line.
func printLine(p cli.Printer, s string) error {
	if _, err := fmt.Fprintln(p.Out, s); err != nil {
		return cli.Fail(cli.IO, fmt.Errorf("writing output: %w", err), "")
	}
	return nil
}
