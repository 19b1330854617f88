// Command relayd is the daemon of an authorization device. It forwards messages between phones
// and the appliance, verifies the appliance's decision, and acts on it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/internal/harden"
	"countersign/relay"
	"countersign/relay/uplink"
)

func main() {
	_ = harden.Process() // as far as the operating system allows
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := cli.UntilStopped()
	defer stop()
	lines := cli.NewLines(stderr)
	code := cli.Main(ctx, root(), cli.Process{Args: args, Stdin: stdin, Stdout: stdout, Stderr: lines, Getenv: os.Getenv})
	_ = lines.Close() // it returns no error
	return code
}

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "relayd", Short: "Daemon of an authorization device"}
	config := &cobra.Command{Use: "config", Short: "Check the configuration file"}
	config.AddCommand(configCheck())
	cmd.AddCommand(enrolCommand(), serve(), config, status())
	return cmd
}

func configCheck() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Report every error in the configuration file, and whether CA file and hook can be used",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.LoadRelay(path)
			if err == nil {
				err = errors.Join(checkHook(c), fault.NoCA.Of(uplink.CheckCA(c.Appliance.CA)))
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", path)
			return fault.Output.Of(err)
		},
	}
	addConfigFlag(cmd, &path)
	return cmd
}

func status() *cobra.Command {
	var path, state string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the device's status",
		Long: `Show one line to read out over the phone: the device's name and id, whether it is running and
reaches the appliance, what keeps it from its work, the end of its certificate, and the last
result. Exit code 69 if it is not running, or cannot authorize.`,
		Args: cobra.NoArgs,
	}
	format := cli.AddOutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := stateDir(path, state)
		if err != nil {
			return err
		}
		return printStatus(dir, cli.Printer{Out: cmd.OutOrStdout(), Format: *format})
	}
	addConfigFlag(cmd, &path)
	cmd.Flags().StringVar(&state, "state", "", "state directory; overrides the configuration")
	return cmd
}

func stateDir(path, state string) (string, error) {
	if state != "" {
		return state, nil
	}
	c, err := config.LoadRelay(path)
	if err != nil {
		return "", err
	}
	return c.StateDir, nil
}

func printStatus(dir string, p cli.Printer) error {
	s, err := relay.ReadStatus(dir)
	if err != nil {
		return failure(err)
	}
	if p.Format == cli.FormatTable {
		_, err = fmt.Fprintln(p.Out, cli.PrintableText(fmt.Sprint(s)))
	} else {
		err = cli.Table[relay.Status]{}.One(p, s)
	}
	if err != nil {
		return fault.Output.Of(err)
	}
	switch {
	case !s.Running:
		return fault.DeviceStopped.Error()
	case !s.Healthy():
		return fault.DeviceUnable.Error()
	}
	return nil
}
