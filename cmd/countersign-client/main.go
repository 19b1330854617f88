// Command countersign-client is the reference client. It does in a shell what a phone does.
package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/internal/harden"
)

func main() {
	_ = harden.Process() // as far as the operating system allows
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := cli.UntilSignal()
	defer stop()
	return cli.Main(ctx, newRoot(os.Getenv), cli.Process{
		Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: os.Getenv,
	})
}

// app is the common state of the commands.
type app struct {
	dir    string
	format *cli.Format
}

func newRoot(getenv func(string) string) *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "countersign-client",
		Short: "Authorize at a device without a network",
		Long: "countersign-client is the reference client of OA1 and acts as a phone: it enrols once over the network and\n" +
			"then authorizes over the near-field link of a device alone.",
	}
	root.PersistentFlags().StringVar(&a.dir, "state", defaultState(getenv), "state directory of the client")
	a.format = cli.AddOutputFlag(root)
	root.AddCommand(a.enrolCommand(), a.authorizeCommand(), a.approveCommand(), a.dryRunCommand(), a.resumeCommand(),
		a.receiptsCommand(), a.statusCommand())
	return root
}

// defaultState follows the XDG base directory specification. It returns "" without a home directory.
func defaultState(getenv func(string) string) string {
	if base := getenv("XDG_DATA_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "countersign-client")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "countersign-client")
	}
	return ""
}

// open opens the state. Read-only commands do not wait for the lock.
func (a *app) open(ctx context.Context, cfg client.Config) (*client.Client, error) {
	if a.dir == "" {
		return nil, fault.NoState.Error()
	}
	cfg.Dir = a.dir
	c, err := client.Open(ctx, cfg)
	return c, explain(err)
}

func (a *app) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *a.format}
}
