package main

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/backup"
	"countersign/appliance/custody"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/cmd/internal/cli"
	"countersign/cmd/internal/config"
	"countersign/cmd/internal/custodian"
)

var (
	// errStoreThere: restore never replaces an appliance that is there.
	errStoreThere = errors.New("there is a store already; restore never replaces one")
	// errLost: keys without a sealed copy will not come back.
	errLost = errors.New("keys without a sealed copy do not come back")
	// errRestoring: a restore was begun here and did not end.
	errRestoring = errors.New("a restore was interrupted here")
)

// restoring is of the database while a restore works on it, and of the file in
// state_dir that says so: what is on the token then is the restore's to remove.
const restoring = "restoring"

// restoreFlags is what restore is told.
type restoreFlags struct {
	*custodian.Flags
	backup, database, root string
	partial, unsigned      bool
}

func restoreCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore --backup FILE --database FILE --share FILE", Args: cobra.NoArgs,
		Short: "Bring a lost appliance back onto an empty token, from backup, database and shares",
		Long: "Bring a lost appliance back onto an empty token. Nothing may be in the way: no store, no key on the token.\n" +
			"Either all of it comes back, or nothing is left; one that was cut off is run again. countersignd serve is next.",
	}
	f := restoreFlags{Flags: custodian.AddFlags(cmd)}
	cmd.Flags().StringVar(&f.backup, "backup", "", "file of countersignctl key backup")
	cmd.Flags().StringVar(&f.database, "database", "", "file of countersignctl store backup, with its .sig beside it")
	cmd.Flags().StringVar(&f.root, "root", "", "public key of a root of this appliance, as countersignctl status and key show root print it: any other is refused")
	cmd.Flags().BoolVar(&f.partial, "partial", false, "though some keys have no sealed copy: they are recorded as destroyed")
	cmd.Flags().BoolVar(&f.unsigned, "unsigned-database", false, "the database is a copy by other means, such as the disk of the lost host: nothing but its own record MACs vouches for it")
	_ = cmd.MarkFlagRequired("backup") // the flags are there
	_ = cmd.MarkFlagRequired("database")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.LoadAppliance(*path)
		if err != nil {
			return err
		}
		r := &restoration{flags: f, cfg: cfg}
		if err := r.run(cmd); err != nil {
			return explain(err)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), r.report())
		return err
	}
	return cmd
}

// restoration is one restore.
type restoration struct {
	flags  restoreFlags
	cfg    *config.Appliance
	backup backup.Backup
	shares []custody.Share
	keys   []*ecdh.PrivateKey // one for each split that shares are of

	work   string // database that is worked on
	merged backup.Merged
	point  store.Point // of the database as it came
	now    time.Time
}

// run reads and checks everything that can be before the token is touched.
func (r *restoration) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	r.now, r.work = time.Now(), r.cfg.Store.Path+"."+restoring
	if err := r.vacant(); err != nil {
		return err
	}
	if err := r.readBackup(); err != nil {
		return err
	}
	if r.shares, err = r.flags.Read(cli.TerminalOf(cmd).Secret); err != nil {
		return err
	}
	if r.keys, err = combine(r.shares); err != nil {
		return err
	}
	if err := os.MkdirAll(r.cfg.StateDir, 0o700); err != nil {
		return cli.Fail(cli.IO, err, "name a directory that this user may write, state_dir")
	}
	if err := r.fetchDatabase(ctx); err != nil {
		return err
	}
	onWork := *r.cfg
	onWork.Store.Path = r.work
	p, err := openParts(ctx, &onWork, around(cmd, r.cfg.Log))
	if err != nil {
		return errors.Join(err, r.removeWork())
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := r.restore(ctx, p); err != nil {
		return errors.Join(err, p.store.Close(), r.removeWork())
	}
	// A cut from here on is a restore to be run again until the store is in place, and
	// after that something for the next start to tidy up.
	if err := p.store.Close(); err != nil {
		return err
	}
	if err := r.putInPlace(); err != nil {
		return err
	}
	return tidy(ctx, r.cfg, p)
}

// vacant: there is no store where one is to come.
func (r *restoration) vacant() error {
	for _, path := range []string{r.cfg.Store.Path, r.cfg.Store.Path + "-wal"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", path, errStoreThere)
		}
	}
	return nil
}

func (r *restoration) readBackup() error {
	file, err := os.ReadFile(r.flags.backup)
	if err != nil {
		return cli.Fail(cli.IO, fmt.Errorf("reading the backup: %w", err), "")
	}
	if r.backup, err = backup.Read(file); err != nil {
		return fmt.Errorf("%s: %w", r.flags.backup, err)
	}
	state, err := r.backup.State()
	if err != nil {
		return fmt.Errorf("%s: %w", r.flags.backup, err)
	}
	if domain := state.Settings.Domain; domain != r.cfg.Trust.Domain {
		return fmt.Errorf("%w: trust.domain is %q, the backup's is %q", errOtherDomain, r.cfg.Trust.Domain, domain)
	}
	return r.checkRoot(state)
}

// checkRoot holds the backup's roots against the one that the administrator knows.
func (r *restoration) checkRoot(state backup.State) error {
	if r.flags.root == "" {
		return nil
	}
	for _, k := range state.Keys {
		if k.Name == keyring.Root && fmt.Sprintf("%x", k.Public) == r.flags.root && k.Cert != nil {
			return nil
		}
	}
	return fmt.Errorf("%s: no root of it is %s: %w", r.flags.backup, r.flags.root, backup.ErrOther)
}

// combine brings back each key that shares are of.
func combine(shares []custody.Share) (keys []*ecdh.PrivateKey, err error) {
	sets := map[custody.Point][]custody.Share{}
	for _, s := range shares {
		sets[s.Key()] = append(sets[s.Key()], s)
	}
	for _, set := range sets {
		private, err := custody.Combine(set)
		if err != nil {
			return nil, custodian.Explain(err)
		}
		keys = append(keys, private)
	}
	return keys, nil
}

// report is what the administrator is told.
func (r *restoration) report() string {
	out := fmt.Sprintf("restored %d keys onto token %s, and the database as of audit record %d, %s\n",
		len(r.merged.Items), r.cfg.HSM.TokenLabel, r.point.Sequence, r.point.At.UTC().Format(time.RFC3339))
	if missing := r.merged.MissingLabels(); len(missing) > 0 {
		out += fmt.Sprintf("not restored: %v\n", missing)
	}
	return out + "What was done after that record is forgotten: repeat the revocations and invitations since, see docs/RECOVERY.md.\n" +
		"Next: countersignd serve, then countersignctl status, key backup and store backup."
}

func markPath(cfg *config.Appliance) string { return filepath.Join(cfg.StateDir, restoring) }
