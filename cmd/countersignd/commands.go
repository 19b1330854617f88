package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
)

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "countersignd", Short: "HSM-backed appliance for offline service authorization"}
	path := cmd.PersistentFlags().String("config", "config.toml", "configuration file")
	cmd.AddCommand(initCommand(path), serveCommand(path), migrateCommand(path), anchorCommand(path), restoreCommand(path), configCommand(path), doctorCommand(path), devCommand())
	return cmd
}

func initCommand(path *string) *cobra.Command {
	return &cobra.Command{
		Use: "init", Args: cobra.NoArgs,
		Short: "Make keys, store, policy and trust domain on a token that exists",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return explain(withParts(cmd, *path, func(ctx context.Context, cfg *config.Appliance, p *parts) error {
				if err := initialize(ctx, p, cfg); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), rootLine(p.anchor.Current().Key))
				return err
			}))
		},
	}
}

func serveCommand(path *string) *cobra.Command {
	return &cobra.Command{
		Use: "serve", Args: cobra.NoArgs, Short: "Serve until SIGTERM",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return end(withParts(cmd, *path, func(ctx context.Context, cfg *config.Appliance, p *parts) error {
				if err := tidy(ctx, cfg, p); err != nil {
					return err
				}
				d, err := newDaemon(ctx, cfg, p)
				if err != nil {
					return err
				}
				return d.run(ctx)
			}))
		},
	}
}

// withParts loads the configuration, opens store and token, and closes them.
func withParts(cmd *cobra.Command, path string, do func(context.Context, *config.Appliance, *parts) error) error {
	cfg, err := config.LoadAppliance(path)
	if err == nil {
		err = finished(cfg)
	}
	if err != nil {
		return err
	}
	p, err := openParts(cmd.Context(), cfg, around(cmd, cfg.Log))
	if err == nil {
		err = do(cmd.Context(), cfg, p)
		if closeErr := p.close(); err == nil {
			err = closeErr
		}
	}
	return err
}

// end is the result of a daemon: to be stopped while it starts is no failure.
func end(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return explain(err)
}

func configCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use: "check", Args: cobra.NoArgs, Short: "Check the configuration file, and touch nothing",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := config.LoadAppliance(*path); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is good\n", *path)
			return err
		},
	})
	return cmd
}

func devCommand() *cobra.Command {
	d := &dev{}
	cmd := &cobra.Command{
		Use: "dev --dir DIR", Args: cobra.NoArgs,
		Short: "Run everything on loopback with a SoftHSM token in DIR, for development and tests",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if d.dir, err = filepath.Abs(d.dir); err != nil {
				return err
			}
			d.from = around(cmd, config.Log{Level: "info", Format: "json"})
			return end(d.run(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&d.dir, "dir", "", "directory of token, store and sockets")
	cmd.Flags().StringVar(&d.module, "module", "", "PKCS#11 module in place of libsofthsm2.so")
	cmd.Flags().StringVar(&d.second, "second-module", "", "PKCS#11 module of a second token with copies of all keys; without it there is one token")
	cmd.Flags().StringVar(&d.recipient, "backup-recipient", "", "backup.pub of countersignctl key custodians init: keys are made with sealed copies for it")
	_ = cmd.MarkFlagRequired("dir") // the flag is there
	return cmd
}

// around collects what the daemon needs of the process it runs in.
func around(cmd *cobra.Command, cfg config.Log) surroundings {
	return surroundings{
		log: hclog.New(&hclog.LoggerOptions{
			Name: "countersignd", Output: cmd.ErrOrStderr(), Level: hclog.LevelFromString(cfg.Level), JSONFormat: cfg.Format == "json",
		}),
		secrets: config.SecretSources{CredentialsDir: os.Getenv("CREDENTIALS_DIRECTORY"), Prompt: cli.TerminalOf(cmd).Secret},
	}
}
