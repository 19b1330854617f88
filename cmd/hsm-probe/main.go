// Command hsm-probe tries, measures and names PKCS#11 modules. countersignctl becomes
// it for hsm probe, hsm bench and hsm uri.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"countersign/hsm"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
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

// exits maps errors to rows of the table of errors.
var exits = fault.Sentinels{
	{context.Canceled, fault.ProbeInterrupted},
	{context.DeadlineExceeded, fault.ProbeHangs},
	{hsm.ErrPIN, fault.ProbePIN},
	{config.ErrTokenDenied, fault.TokenDenied},
	{hsm.ErrUnavailable, fault.ProbeNoToken},
}

func explain(err error) error {
	if row, ok := exits.Find(err); ok {
		return row.Of(err)
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
				return fault.Output.Of(err)
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
		return fault.Output.Of(err)
	}
	return nil
}
