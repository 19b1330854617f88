// Command countersign-client is the reference client: it does what a phone does,
// from a shell.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
)

// harden is for what the system at hand offers.
var harden = func() {}

func main() {
	harden()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, newRoot(os.Getenv), cli.Process{
		Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: os.Getenv,
	})
}

// app is what the commands share.
type app struct {
	dir    string
	format *cli.Format
}

func newRoot(getenv func(string) string) *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "countersign-client",
		Short: "Authorize at a device, without a network",
		Long: "countersign-client is the reference client of OA1, as a phone would be: it enrols once over the network\n" +
			"and then authorizes over the near-field link of a device alone.",
	}
	root.PersistentFlags().StringVar(&a.dir, "state", defaultState(getenv), "directory of the client's state")
	a.format = cli.AddOutputFlag(root)
	root.AddCommand(a.enrolCommand(), a.authorizeCommand(), a.approveCommand(), a.dryRunCommand(), a.resumeCommand(),
		a.receiptsCommand(), a.statusCommand())
	return root
}

// defaultState follows the XDG base directory specification; "" where there is
// no home.
func defaultState(getenv func(string) string) string {
	if base := getenv("XDG_DATA_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "countersign-client")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "countersign-client")
	}
	return ""
}

// open opens the state. A command that only looks does not wait for one that works.
func (a *app) open(ctx context.Context, cfg client.Config) (*client.Client, error) {
	if a.dir == "" {
		return nil, cli.Fail(cli.Usage, fmt.Errorf("no directory for the state"), "give one with --state")
	}
	cfg.Dir = a.dir
	c, err := client.Open(ctx, cfg)
	return c, explain(err)
}

func (a *app) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *a.format}
}
