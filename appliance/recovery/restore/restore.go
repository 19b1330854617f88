// Package restore brings a lost appliance back onto an empty token, from a backup of its
// keys, a copy of its database and the shares of the backup key. It also seals stores of
// releases before the seals.
package restore

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/anchor"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/protocol"
)

var (
	// ErrStoreExists means that the host has a store. A restore never replaces one.
	ErrStoreExists = errors.New("there is a store already; restore never replaces one")
	// ErrRunning means that another restore works on the same state directory.
	ErrRunning = errors.New("another restore is running")
	// ErrInterrupted means that a restore was interrupted and must be run again.
	ErrInterrupted = errors.New("a restore was interrupted here")
	// ErrOldMAC means that the anchor of the host would refuse what comes back.
	ErrOldMAC = errors.New("the anchor of this host is ahead of the files")
	// ErrLost means that keys without a sealed copy would not come back.
	ErrLost = errors.New("keys without a sealed copy do not come back")
	// ErrUnsealed means that neither a statement nor seals vouch for the database.
	ErrUnsealed = errors.New("a database of a release before the seals needs its statement")
	// ErrNoStatement means that the database has no statement.
	ErrNoStatement = errors.New("nothing vouches for the database")
	// ErrDomain means that the backup is of another trust domain than the configuration.
	ErrDomain = errors.New("another trust domain")
	// ErrFiles means that a file cannot be read or written.
	ErrFiles = errors.New("cannot read or write a file")
)

// Host is where the appliance will run.
type Host struct {
	StateDir string
	Store    string             // path of the database
	Label    string             // of the token, for the rows of restored keys
	Root     protocol.PublicKey // trust.root; zero: none
	Anchor   *anchor.File
	Seals    *store.Seals
	Log      hclog.Logger
	// Token opens the token. It is called last, because it may try a PIN.
	Token func(context.Context) (hsm.Token, error)
}

// Config describes one restore.
type Config struct {
	Host
	Known        backup.Known // to verify the files with
	Domain       string       // trust domain of the configuration
	BackupFile   string
	DatabaseFile string // its statement is in DatabaseFile + ".sig"
	Partial      bool   // restore although some keys have no sealed copy
	// Unsigned means that the database has no statement: keys, trust and policy come from
	// the backup alone.
	Unsigned bool
	// Shares reads the shares. It is called once the backup is verified.
	Shares func() ([]custody.Share, error)
}

// Report describes the restored appliance.
type Report struct {
	Backup    backup.Backup
	Statement backup.Statement // of the database; zero if it is unsigned
	backup.Merged
	Point    store.Point        // of the database as it came
	Salvaged error              // why only verified records were taken from the database; nil: all were
	Forged   []error            // records that do not match their seals
	Ended    []audit.Record     // revocations and suspensions shortly before Point
	Newest   protocol.PublicKey // the newest root
}

// restoration is one restore.
type restoration struct {
	Config
	Report
	shares []custody.Share
	keys   []*ecdh.PrivateKey // one for each split that shares are of
	now    time.Time

	token hsm.Token
	work  string      // the database being worked on
	store store.Store // open on work, once it is sealed
	old   *sqlite.Old // open on work if it is of a release before the seals
}

// Run restores an appliance. It verifies everything it can before it touches the token.
// After an error either nothing is left on host and token, or Run must be repeated:
// [Host.Unfinished] then returns an error until it succeeds.
func Run(ctx context.Context, c Config) (report Report, err error) {
	r := &restoration{Config: c, now: time.Now(), work: c.Store + "." + restoring}
	if err := inOrder(ctx, r.CheckVacant, r.readBackup, r.readShares); err != nil {
		return report, err
	}
	turn, err := r.alone()
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, turn.Close()) }()
	if err := r.fetchDatabase(ctx); err != nil {
		return report, err
	}
	if err := inOrder(ctx, r.openDatabase, r.openToken, r.merge, r.restore); err != nil {
		return report, errors.Join(err, r.closeDatabase(), r.removeWork())
	}
	// From here on an interrupted restore must be repeated until the store is in place.
	// After that the next start tidies up.
	if err := r.closeDatabase(); err != nil {
		return report, err
	}
	if err := r.putInPlace(); err != nil {
		return report, err
	}
	return r.Report, r.Tidy(ctx, r.token)
}

// inOrder runs steps until one fails.
func inOrder(ctx context.Context, steps ...func(context.Context) error) error {
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *restoration) readBackup(context.Context) error {
	file, err := os.ReadFile(r.BackupFile)
	if err != nil {
		return failed("reading the backup", err)
	}
	if r.Backup, err = backup.Read(file, r.Known); err != nil {
		return fmt.Errorf("%s: %w", r.BackupFile, err)
	}
	if domain := r.Backup.State.Settings.Domain; domain != r.Domain {
		return fmt.Errorf("%w: trust.domain is %q, the backup's is %q", ErrDomain, r.Domain, domain)
	}
	return nil
}

// readShares reads the shares and recovers each key that they are of.
func (r *restoration) readShares(context.Context) (err error) {
	if r.shares, err = r.Shares(); err != nil {
		return err
	}
	sets := map[protocol.PublicKey][]custody.Share{}
	for _, s := range r.shares {
		sets[s.Key()] = append(sets[s.Key()], s)
	}
	for _, set := range sets {
		private, err := custody.Combine(set)
		if err != nil {
			return err
		}
		r.keys = append(r.keys, private)
	}
	return nil
}

func (r *restoration) openToken(ctx context.Context) (err error) {
	r.token, err = r.Host.Token(ctx)
	return err
}

// restore works on token and database. After an error both are as before, or the mark
// stays.
func (r *restoration) restore(ctx context.Context) error {
	marker, err := r.marker()
	if err != nil {
		return err
	}
	restorer := backup.Restorer{Token: r.token, Items: r.Items, Keys: r.keys, Marker: marker}
	if err := restorer.Check(); err != nil {
		return err
	}
	if err := restorer.Sweep(ctx); err != nil {
		return err
	}
	if err := r.mark(marker); err != nil {
		return err
	}
	if err := restorer.Run(ctx); err != nil {
		return errors.Join(err, r.unmark(ctx))
	}
	if err := inOrder(ctx, r.unseal, r.recover, r.verify, r.testKeys, r.moveAnchor); err != nil {
		return errors.Join(err, restorer.Undo(ctx), r.unmark(ctx))
	}
	return nil
}
