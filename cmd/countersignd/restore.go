package main

import (
	"context"
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

// restore does the work on the token and the database; after an error both are as if
// it had not begun, or the mark stays.
func (r *restoration) restore(ctx context.Context, p *parts) (err error) {
	if p.locked() {
		return p.tokenError()
	}
	if err := r.merge(ctx, p); err != nil {
		return err
	}
	restorer := backup.Restorer{Token: p.token, Items: r.merged.Items, Keys: r.keys}
	if restorer.Marker, err = markerOf(r.cfg); err != nil {
		return err
	}
	if err := restorer.Check(); err != nil {
		return err
	}
	if err := restorer.Sweep(ctx); err != nil {
		return err
	}
	if err := r.mark(restorer.Marker); err != nil {
		return err
	}
	if err := r.onto(ctx, p, restorer); err != nil {
		return errors.Join(err, r.unmark(ctx, p))
	}
	return nil
}

// onto is all that changes the token.
func (r *restoration) onto(ctx context.Context, p *parts, restorer backup.Restorer) error {
	if err := restorer.Run(ctx); err != nil {
		return err
	}
	if err := r.finish(ctx, p); err != nil {
		return errors.Join(err, restorer.Undo(ctx))
	}
	return nil
}

// merge holds database and backup together.
func (r *restoration) merge(ctx context.Context, p *parts) error {
	if err := r.sameHistory(ctx, p.store); err != nil {
		return err
	}
	database, err := backup.StateOf(ctx, p.store)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	document, err := r.backup.State()
	if err != nil {
		return err
	}
	if r.merged, err = backup.Merge(database, document); err != nil {
		return err
	}
	if lost := r.merged.Lost(); len(lost) > 0 && !r.flags.partial {
		return fmt.Errorf("%w: %v", errLost, backup.Labels(lost))
	}
	return nil
}

// sameHistory finds the record at which the backup was made, in a database that is
// newer.
func (r *restoration) sameHistory(ctx context.Context, s store.Audit) error {
	at := r.backup.Point.Sequence
	if at == 0 || at > r.point.Sequence {
		return nil
	}
	records, err := s.Records(ctx, at-1, 1)
	if err != nil {
		return fmt.Errorf("reading %s: %w", r.flags.database, err)
	}
	if len(records) != 1 || records[0].Leaf() != r.backup.Point.Leaf {
		return fmt.Errorf("audit record %d of the database is not the one that the backup knows: %w", at, backup.ErrOther)
	}
	return nil
}

// finish makes the database say what happened, and has every key show that it is the
// one it is said to be.
func (r *restoration) finish(ctx context.Context, p *parts) error {
	rec := store.NewRecord(store.KindStore, "restore", map[string]any{
		"event": "restored", "backup_sha256": r.backup.SHA256[:], "backup_at": r.backup.At, "keys": len(r.merged.Items),
		"missing": append([]string{}, r.merged.MissingLabels()...), "sequence": r.point.Sequence, "shares": r.shareNumbers(), "signed": !r.flags.unsigned,
	})
	if err := p.store.Recover(ctx, r.merged.Recovered(r.cfg.HSM.TokenLabel, r.now), rec); err != nil {
		return fmt.Errorf("recording the restore: %w", err)
	}
	keys, err := keyring.Load(ctx, p.token, p.store)
	if err != nil {
		return err
	}
	if err := keys.SelfTest(ctx, r.now); err != nil {
		return err
	}
	for _, name := range keyring.Needed {
		if _, err := keys.Current(name, r.now); err != nil {
			return err
		}
	}
	return keys.StoreAuthorities(ctx)
}

func (r *restoration) shareNumbers() (all []int) {
	for _, s := range r.shares {
		all = append(all, s.Number)
	}
	return all
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

// statement reads what vouches for the database.
func (r *restoration) statement() (c backup.Copy, err error) {
	file, err := os.ReadFile(r.flags.database + ".sig")
	if errors.Is(err, fs.ErrNotExist) {
		return c, cli.Fail(cli.Failed, fmt.Errorf("nothing vouches for the database: %w", err),
			"countersignctl store backup writes FILE.sig beside FILE; a copy by other means is taken with --unsigned-database")
	}
	if err != nil {
		return c, cli.Fail(cli.IO, err, "")
	}
	if c, err = r.backup.Vouched(file); err != nil {
		return c, fmt.Errorf("%s.sig: %w", r.flags.database, err)
	}
	return c, nil
}

func markPath(cfg *config.Appliance) string { return filepath.Join(cfg.StateDir, restoring) }
