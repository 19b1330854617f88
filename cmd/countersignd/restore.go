package main

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/backup"
	"countersign/appliance/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/custodian"
	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/protocol/trust"
)

var (
	// errStoreThere: restore never replaces an appliance that is there.
	errStoreThere = errors.New("there is a store already; restore never replaces one")
	// errNoRoot: there is nothing to hold the files against.
	errNoRoot = errors.New("no root of this appliance is named, and no file vouches for its own")
	// errTwoRestores: two would work on one database.
	errTwoRestores = errors.New("another countersignd restore is running")
	// errOldMAC: the anchor would refuse what comes back.
	errOldMAC = errors.New("the anchor of this host is ahead of the files")
	// errLost: keys without a sealed copy will not come back.
	errLost = errors.New("keys without a sealed copy do not come back")
	// errUnsealed: nothing vouches for the database, not even its seals.
	errUnsealed = errors.New("a database of a release before the seals is good with its statement only")
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
	minEpoch               uint64
	partial, unsigned      bool
}

func restoreCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore --root KEY --backup FILE --database FILE --share FILE", Args: cobra.NoArgs,
		Short: "Bring a lost appliance back onto an empty token, from backup, database and shares",
		Long: "Bring a lost appliance back onto an empty token. Nothing may be in the way: no store, no key on the token.\n" +
			"Either all of it comes back, or nothing is left; one that was cut off is run again. countersignd serve is next.",
	}
	f := restoreFlags{Flags: custodian.AddFlags(cmd)}
	cmd.Flags().StringVar(&f.backup, "backup", "", "file of countersignctl key backup")
	cmd.Flags().StringVar(&f.database, "database", "", "file of countersignctl store backup, with its .sig beside it")
	cmd.Flags().StringVar(&f.root, "root", "", "public key of any root of this appliance, as countersignd init and countersignctl status print it (default trust.root): files that no chain with it has signed are refused")
	cmd.Flags().Uint64Var(&f.minEpoch, "min-epoch", 0, "least epoch of the decision key that may have signed backup and database, where earlier ones may be in strange hands")
	cmd.Flags().BoolVar(&f.partial, "partial", false, "though some keys have no sealed copy: they are recorded as destroyed")
	cmd.Flags().BoolVar(&f.unsigned, "unsigned-database", false, "the database is a copy by other means, such as the disk of the lost host: keys, trust and policy come from the backup alone")
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
	vouch  backup.Statement // of the database, where it is signed
	shares []custody.Share
	keys   []*ecdh.PrivateKey // one for each split that shares are of
	root   protocol.PublicKey // that the administrator knows
	newest protocol.PublicKey // root, of what was restored

	work   string      // database that is worked on
	old    *sqlite.Old // it, where it is of a release before the seals; nil: it is not
	forged []error     // records that do not fit their seals
	// salvaged is why the database as a whole was not believed, nil if it was
	salvaged error
	merged   backup.Merged
	point    store.Point    // of the database as it came
	ended    []audit.Record // that revoked or suspended somebody shortly before
	now      time.Time
}

// run reads and checks everything that can be before the token is touched.
func (r *restoration) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	r.now, r.work = time.Now(), r.cfg.Store.Path+"."+restoring
	if err := r.vacant(); err != nil {
		return err
	}
	if r.root, err = r.knownRoot(); err != nil {
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
	turn, err := r.alone()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, turn.Close()) }()
	if err := r.fetchDatabase(ctx); err != nil {
		return err
	}
	p, err := r.open(ctx, around(cmd, r.cfg.Log))
	if err != nil {
		return errors.Join(err, r.removeWork())
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := r.restore(ctx, p); err != nil {
		return errors.Join(err, r.closeStore(p), r.removeWork())
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

// open opens the database that is worked on, and the token.
func (r *restoration) open(ctx context.Context, from surroundings) (*parts, error) {
	old, err := sqlite.OpenOld(ctx, r.work)
	if errors.Is(err, store.ErrExists) { // it is sealed
		onWork := *r.cfg
		onWork.Store.Path = r.work
		return openParts(ctx, &onWork, from)
	}
	if err != nil {
		return nil, err
	}
	r.old = old
	if r.flags.unsigned {
		return nil, errors.Join(fmt.Errorf("%s: %w", r.flags.database, errUnsealed), old.Close())
	}
	p, err := newParts(r.cfg, from)
	if err == nil {
		err = p.openTokens(ctx, r.cfg, from.secrets)
	}
	if err != nil {
		return nil, errors.Join(err, old.Close())
	}
	return p, nil
}

// closeStore closes what open opened of the database.
func (r *restoration) closeStore(p *parts) (err error) {
	if r.old != nil {
		err = r.old.Close()
	}
	if p.store != nil {
		err = errors.Join(err, p.store.Close())
	}
	return err
}

// alone keeps any other restore out of the state directory until what it returns is closed,
// and looks again whether there is a store.
func (r *restoration) alone() (turn io.Closer, err error) {
	lock, err := durable.Lock(r.cfg.StateDir) // not a file in it: a restore that is refused leaves nothing behind
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("%s: %w", r.cfg.StateDir, errTwoRestores)
	}
	if err != nil {
		return nil, cli.Fail(cli.IO, err, "")
	}
	if err := r.vacant(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
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
	if r.backup, err = backup.Read(file, backup.Known{Root: r.root, MinEpoch: r.flags.minEpoch}); err != nil {
		return fmt.Errorf("%s: %w", r.flags.backup, err)
	}
	if domain := r.backup.State.Settings.Domain; domain != r.cfg.Trust.Domain {
		return fmt.Errorf("%w: trust.domain is %q, the backup's is %q", errOtherDomain, r.cfg.Trust.Domain, domain)
	}
	return nil
}

// knownRoot is the root that the administrator names, by flag or as trust.root: no file
// vouches for its own.
func (r *restoration) knownRoot() (key protocol.PublicKey, err error) {
	digits := cmp.Or(r.flags.root, r.cfg.Trust.Root)
	if digits == "" {
		return key, cli.Fail(cli.Usage, errNoRoot, "--root 03…, or trust.root: the public key of any root of this appliance, from the custodians' paper or wherever it was kept apart from the backups")
	}
	if key, err = parseRoot(digits); err != nil {
		return key, cli.Fail(cli.Usage, err, "66 hexadecimal digits, as countersignd init and countersignctl status print them")
	}
	return key, nil
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
		len(r.merged.Items), r.cfg.HSM.TokenLabel, r.point.Sequence, dated(r.point.At))
	out += fmt.Sprintf("backup of %s, signed by %s\n", dated(r.backup.Time()), epoch(r.backup.By))
	if r.flags.unsigned {
		out += "database not signed: keys, trust and policy are the backup's\n"
	} else {
		out += fmt.Sprintf("database of %s, signed by %s\n", dated(r.vouch.Point.Time()), epoch(r.vouch.By))
	}
	if missing := r.merged.MissingLabels(); len(missing) > 0 {
		out += fmt.Sprintf("not restored: %v\n", missing)
	}
	if len(r.merged.Ignored) > 0 {
		out += fmt.Sprintf("newer in the database, and not taken from it: %v\n", r.merged.Ignored)
	}
	if r.salvaged != nil {
		out += cli.Printable(fmt.Sprintf("the database is not whole (%v): clients, devices and decisions whose seals verify were taken,", r.salvaged)) + "\n" +
			"administrators, change requests and invitations were not: add and invite them again\n"
	}
	if len(r.forged) > 0 {
		out += fmt.Sprintf("%d records do not fit their seals and were ignored:\n", len(r.forged))
		for _, err := range r.forged {
			out += cli.Printable("  "+err.Error()) + "\n"
		}
	}
	out += "revoked or suspended in the 30 days before that record:\n"
	for _, rec := range r.ended {
		out += cli.Printable(fmt.Sprintf("  %s %s %s", dated(rec.At), rec.Subject, rec.Words()["event"])) + "\n"
	}
	if len(r.ended) == 0 {
		out += "  none\n"
	}
	out += rootLine(r.newest) + "\n"
	return out + "What was done after that record is forgotten: repeat the revocations and invitations since, see docs/RECOVERY.md.\n" +
		"Next: countersignd serve, then countersignctl status, key backup and store backup."
}

// epoch names a decision key and its dates.
func epoch(by trust.KeyCert) string {
	return fmt.Sprintf("decision@%d of %s to %s", by.Epoch, dated(time.Unix(int64(by.NotBefore), 0)), dated(time.Unix(int64(by.NotAfter), 0)))
}

func dated(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func markPath(cfg *config.Appliance) string { return filepath.Join(cfg.StateDir, restoring) }
