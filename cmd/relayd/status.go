package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/relay"
)

func configCheck() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the configuration file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := config.LoadRelay(path); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", path)
			return cli.Fail(cli.IO, err, "")
		},
	}
	addConfigFlag(cmd, &path)
	return cmd
}

func status() *cobra.Command {
	var path, state string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "One line for support: who the device is, and how it is",
		Long: `One line that can be read out over the phone: the device's name and id, whether it runs and
reaches the appliance, until when its certificate is valid, and the last result. Exit code 69 if
it does not run.`,
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
	cmd.Flags().StringVar(&state, "state", "", "state directory, in place of the configuration's")
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
		_, err = fmt.Fprintln(p.Out, s)
	} else {
		err = cli.Table[relay.Status]{}.One(p, s)
	}
	if err != nil {
		return cli.Fail(cli.IO, err, "")
	}
	if !s.Running {
		return cli.Fail(cli.Unavailable, errors.New("relayd does not run"), "relayd serve --config FILE")
	}
	return nil
}
