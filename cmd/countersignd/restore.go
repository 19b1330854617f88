package main

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/recovery/custody"
	"countersign/appliance/recovery/restore"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/custodian"
	"countersign/internal/fault"
	"countersign/protocol"
	"countersign/protocol/trust"
)

func restoreCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore --root KEY --backup FILE --database FILE --share FILE", Args: cobra.NoArgs,
		Short: "Restore a lost appliance onto an empty token, from backup, database and shares",
		Long: "Restore a lost appliance onto an empty token. There must be no store yet, and no key on the token.\n" +
			"Either everything is restored, or nothing is left. Run an interrupted restore again.\n" +
			"Then run countersignd serve.",
	}
	var c restore.Config
	var root string
	shares := custodian.AddFlags(cmd)
	cmd.Flags().StringVar(&c.BackupFile, "backup", "", "file written by countersignctl key backup")
	cmd.Flags().StringVar(&c.DatabaseFile, "database", "", "file written by countersignctl store backup, next to its .sig")
	cmd.Flags().StringVar(&root, "root", "", "public key of any root of this appliance, as printed by countersignd init and "+
		"countersignctl status (default trust.root); files signed by other roots are refused")
	cmd.Flags().Uint64Var(&c.Known.MinEpoch, "min-epoch", 0, "refuse backups and databases signed by an earlier epoch of the "+
		"decision key, because that key may be compromised")
	cmd.Flags().BoolVar(&c.Partial, "partial", false, "restore although some keys have no sealed copy; they are recorded as destroyed")
	cmd.Flags().BoolVar(&c.Unsigned, "unsigned-database", false, "accept a database without a .sig, such as one from the disk of "+
		"the lost host: keys, trust and policy come from the backup alone")
	_ = cmd.MarkFlagRequired("backup") // the flags exist
	_ = cmd.MarkFlagRequired("database")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		cfg, err := config.LoadAppliance(*path)
		if err != nil {
			return err
		}
		host := restore.Host{StateDir: cfg.StateDir, Store: cfg.Store.Path}
		if err := host.CheckVacant(cmd.Context()); err != nil { // before anything is opened
			return explain(err)
		}
		if c.Known.Root, err = knownRoot(cmp.Or(root, cfg.Trust.Root)); err != nil {
			return err
		}
		from := environmentOf(cmd, cfg.Log)
		p, err := newParts(cfg, from)
		if err != nil {
			return explain(err)
		}
		defer func() { err = errors.Join(err, p.close()) }()
		c.Host, c.Domain = p.host(cfg, from), cfg.Trust.Domain
		c.Shares = func() ([]custody.Share, error) { return shares.Read(cli.TerminalOf(cmd).Secret) }
		report, err := restore.Run(cmd.Context(), c)
		if err != nil {
			return explain(custodian.Explain(err))
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), reportText(c, report))
		return err
	}
	return cmd
}

// knownRoot parses the root that the administrator names.
func knownRoot(digits string) (key protocol.PublicKey, err error) {
	if digits == "" {
		return key, fault.NoRootNamed.Error()
	}
	if key, err = parseRoot(digits); err != nil {
		return key, fault.RootDigits.Of(err)
	}
	return key, nil
}

func reportText(c restore.Config, r restore.Report) string {
	out := fmt.Sprintf("restored %d keys onto token %s, and the database as of audit record %d, %s\n",
		len(r.Items), c.Label, r.Point.Sequence, dated(r.Point.At))
	out += fmt.Sprintf("backup of %s, signed by %s\n", dated(r.Backup.Time()), epoch(r.Backup.By))
	if c.Unsigned {
		out += "database not signed: keys, trust and policy are the backup's\n"
	} else {
		out += fmt.Sprintf("database of %s, signed by %s\n", dated(r.Statement.Point.Time()), epoch(r.Statement.By))
	}
	if missing := r.MissingLabels(); len(missing) > 0 {
		out += fmt.Sprintf("not restored: %v\n", missing)
	}
	if len(r.Ignored) > 0 {
		out += fmt.Sprintf("newer in the database, and not taken from it: %v\n", r.Ignored)
	}
	if r.Salvaged != nil {
		out += cli.Printable(fmt.Sprintf("the database is not whole (%v): clients, devices and decisions whose seals verify "+
			"were taken,", r.Salvaged)) + "\nadministrators, change requests and invitations were not: add and invite them again\n"
	}
	if len(r.Forged) > 0 {
		out += fmt.Sprintf("%d records do not match their seals and were ignored:\n", len(r.Forged))
		for _, err := range r.Forged {
			out += cli.Printable("  "+err.Error()) + "\n"
		}
	}
	out += "revoked or suspended in the 30 days before that record:\n"
	for _, rec := range r.Ended {
		out += cli.Printable(fmt.Sprintf("  %s %s %s", dated(rec.At), rec.Subject, rec.Words()["event"])) + "\n"
	}
	if len(r.Ended) == 0 {
		out += "  none\n"
	}
	return out + rootLine(r.Newest) + "\n" +
		"Everything after that record is lost: repeat later revocations and invitations, see docs/RECOVERY.md.\n" +
		"Next: countersignd serve, then countersignctl status, key backup and store backup.\n"
}

// epoch describes a decision key and its dates.
func epoch(by trust.KeyCert) string {
	begin, end := time.Unix(int64(by.NotBefore), 0), time.Unix(int64(by.NotAfter), 0)
	return fmt.Sprintf("decision@%d of %s to %s", by.Epoch, dated(begin), dated(end))
}

func dated(t time.Time) string { return t.UTC().Format(time.RFC3339) }
