// Command countersignd is the appliance's daemon. It parses the command line, opens the parts of the appliance and
// connects them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/server"
	"countersign/appliance/anchor"
	"countersign/appliance/dev"
	"countersign/appliance/doctor"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/restore"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/internal/harden"
)

func main() {
	unix.Umask(0o077)    // new files are private
	_ = harden.Process() // doctor reports what is missing
	ctx, stop := cli.UntilStopped()
	defer stop()
	stderr := cli.NewLines(os.Stderr)
	p := cli.Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: stderr, Getenv: os.Getenv}
	code := cli.Main(audit.By(ctx, audit.UserOf(uint32(os.Getuid()))), root(), p)
	_ = stderr.Close() // it returns no error
	os.Exit(code)
}

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "countersignd", Short: "HSM-backed appliance for offline service authorization"}
	path := cmd.PersistentFlags().String("config", "config.toml", "configuration file")
	cmd.AddCommand(
		initCommand(path), serveCommand(path), migrateCommand(path), anchorCommand(path), restoreCommand(path),
		configCommand(path), doctorCommand(path), devCommand(),
	)
	return cmd
}

func initCommand(path *string) *cobra.Command {
	return &cobra.Command{
		Use: "init", Args: cobra.NoArgs,
		Short: "Create keys, store, policy and trust domain on an existing token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return explain(opener(openOrNew).with(cmd, *path, func(ctx context.Context, cfg *config.Appliance, p *parts) error {
				if err := initialize(ctx, p, cfg); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), rootLine(p.anchor.Current().Key))
				return err
			}))
		},
	}
}

// opener opens store and token.
type opener func(context.Context, *config.Appliance, environment) (*parts, error)

// with loads the configuration, opens store and token, and closes them after do.
func (open opener) with(cmd *cobra.Command, path string, do func(context.Context, *config.Appliance, *parts) error) error {
	cfg, err := config.LoadAppliance(path)
	if err != nil {
		return err
	}
	return open.on(cmd.Context(), cfg, environmentOf(cmd, cfg.Log), func(ctx context.Context, p *parts) error { return do(ctx, cfg, p) })
}

// on opens store and token, and closes them after do.
func (open opener) on(ctx context.Context, cfg *config.Appliance, env environment, do func(context.Context, *parts) error) error {
	if err := (restore.Host{StateDir: cfg.StateDir, Store: cfg.Store.Path}).Unfinished(); err != nil {
		return err
	}
	p, err := open(ctx, cfg, env)
	if err == nil {
		err = do(ctx, p)
		if closeErr := p.close(); err == nil {
			err = closeErr
		}
	}
	return err
}

func configCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Inspect the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use: "check", Args: cobra.NoArgs, Short: "Check the configuration file without any other effect",
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

var doctorTable = cli.Table[adminapi.Examination]{
	{Title: "Check", Value: func(e adminapi.Examination) string { return e.Check }},
	{Title: "Status", Value: func(e adminapi.Examination) string { return e.Status }},
	{Title: "Detail", Value: func(e adminapi.Examination) string { return e.Detail }},
	{Title: "What to do", Value: func(e adminapi.Examination) string { return e.Advice }},
}

func doctorCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Args: cobra.NoArgs,
		Short: "Examine configuration, files, host, HSM and store, with or without a running daemon",
	}
	format := cli.AddOutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		env := environmentOf(cmd, config.Log{Level: "off", Format: "text"})
		found := doctor.Examine(cmd.Context(), doctor.Config{
			Path: *path, AnchorPath: anchorPath, WorkerBinary: workerBinary, LeastFree: leastFree, Timeout: startTimeout,
			Explain: explain,
			Open: func(ctx context.Context, cfg *config.Appliance) ([]adminapi.Examination, error) {
				return examineParts(ctx, cfg, env)
			},
		})
		if err := doctorTable.List(cli.Printer{Out: cmd.OutOrStdout(), Format: *format}, found); err != nil {
			return err
		}
		return doctor.Verdict(found)
	}
	return cmd
}

// examineParts opens the token as the daemon does, and the store for reading only. It changes no anchor.
func examineParts(ctx context.Context, cfg *config.Appliance, env environment) (found []adminapi.Examination, err error) {
	p, err := readParts(cfg, env)
	if err != nil {
		return nil, err
	}
	if p.store, err = sqlite.Open(ctx, sqlite.Config{Path: cfg.Store.Path, ReadOnly: true, Logger: p.log}); err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", cfg.Store.Path, err)
	}
	if err := p.openTokens(ctx, cfg, env.secrets); err != nil {
		return nil, errors.Join(err, p.close())
	}
	defer func() { err = errors.Join(err, p.close()) }()
	keys, err := p.registry(ctx, keyuse.Pins{Anchor: anchor.InMemory(p.anchor.Current()), Root: p.root})
	if err != nil {
		return nil, err
	}
	a, err := appliance.New(ctx, appliance.Config{Store: p.store, Keys: keys, Schedule: schedule(cfg.Keys), Logger: p.log})
	if err != nil {
		return nil, err
	}
	found = append(server.Examinations(ctx, a), server.ExamineTokens(p.hsmTokens())...)
	return append(found, p.examineSchema()...), nil
}

// examineSchema announces an upgrade of the database.
func (p *parts) examineSchema() []adminapi.Examination {
	from, to, err := p.store.Schema()
	if err != nil || from == to {
		return nil
	}
	row := fault.DoctorUpgrade.With("from", strconv.Itoa(from), "to", strconv.Itoa(to))
	return []adminapi.Examination{{Check: "schema", Status: adminapi.CheckWarn, Detail: row.Text, Advice: row.Advice}}
}

func devCommand() *cobra.Command {
	o := dev.Options{StartTimeout: startTimeout}
	cmd := &cobra.Command{
		Use: "dev --dir DIR", Args: cobra.NoArgs,
		Short: "Run everything on loopback with a SoftHSM token in DIR, for development and tests",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.RelayBinary, err = siblingOr("", "relayd"); err != nil {
				return err
			}
			if o.ProbeBinary, err = siblingOr("", "hsm-probe"); err != nil {
				return err
			}
			env := environmentOf(cmd, config.Log{Level: "info", Format: "json"})
			stopped := whenStopped(cmd.Context())
			err = end(dev.Run(cmd.Context(), o, func(ctx context.Context, cfg *config.Appliance) (dev.Daemon, error) {
				logStart(env.log, o.Dir, cfg)
				return startDev(ctx, cfg, env)
			}))
			if err == nil {
				logStop(cmd.Context(), env.log, stopped())
			}
			return err
		},
	}
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory of token, store and sockets")
	cmd.Flags().StringVar(&o.Module, "module", "", "PKCS#11 module (default libsofthsm2.so)")
	cmd.Flags().StringVar(&o.SecondModule, "second-module", "",
		"PKCS#11 module of a second token with copies of all keys (default: one token)")
	cmd.Flags().StringVar(&o.Recipient, "backup-recipient", "",
		"backup.pub of countersignctl key custodians init: new keys get a copy that is sealed for it")
	_ = cmd.MarkFlagRequired("dir") // the flag exists
	return cmd
}

// startDev opens an appliance, and initializes it the first time.
func startDev(ctx context.Context, cfg *config.Appliance, env environment) (dev.Daemon, error) {
	p, err := openOrNew(ctx, cfg, env)
	if err != nil {
		return nil, err
	}
	founded, err := p.founded(ctx)
	if err == nil && !founded {
		err = initialize(ctx, p, cfg)
	}
	var d *daemon
	if err == nil {
		d, err = newDaemon(ctx, cfg, p)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return devDaemon{d}, nil
}

// environmentOf returns the logger and the sources of secrets for a command.
func environmentOf(cmd *cobra.Command, cfg config.Log) environment {
	return environment{
		log: hclog.New(&hclog.LoggerOptions{
			Name: "countersignd", Output: cmd.ErrOrStderr(), Level: hclog.LevelFromString(cfg.Level), JSONFormat: cfg.Format == "json",
		}),
		secrets: config.SecretSources{CredentialsDir: os.Getenv("CREDENTIALS_DIRECTORY"), Prompt: cli.TerminalOf(cmd).Secret},
	}
}
