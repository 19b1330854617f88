// Command relayd is the daemon of an authorization device: it carries messages
// between phones and the appliance, verifies the appliance's decision, and acts on it.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/internal/cli"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, root(), cli.Process{Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: os.Getenv})
}

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "relayd", Short: "The daemon of an authorization device"}
	config := &cobra.Command{Use: "config", Short: "The configuration file"}
	config.AddCommand(configCheck())
	cmd.AddCommand(enrolCommand(), serve(), config, status())
	return cmd
}
