package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/durable"
	"countersign/internal/fault"
	"countersign/policy"
)

const outHelp = "file to write, mode 0600; an existing file is replaced; not needed with --dry-run"

// keyBackup writes all keys, sealed, with the trust settings and the policy, to one file.
func (t *tool) keyBackup() *cobra.Command {
	var req adminapi.KeyBackupAsk
	var out string
	cmd := verb("backup --out FILE", "Write every key, sealed for the backup key, and the trust settings to one file", func(cmd *cobra.Command, _ []string) error {
		if !req.DryRun {
			if err := writable(out); err != nil {
				return err
			}
		}
		made, err := t.fetchBackup(cmd, req)
		if err == nil && !req.DryRun {
			err = writeBytes(out, made.File)
			t.report(cmd, adminapi.Routes.KeyKept, made.SHA256, err)
		}
		if err != nil {
			return err
		}
		made.File = nil
		if err := keyBackupTable.One(t.printer(cmd), made); err != nil || !req.DryRun {
			return err
		}
		return t.showQuorumOf(cmd, policy.KeyBackup)
	})
	quorumFlags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only show which keys the backup would cover")
	cmd.Flags().StringVar(&out, "out", "", outHelp)
	cmd.Flags().BoolVar(&req.Partial, "partial", false, "leave out keys without a sealed copy: they cannot be restored")
	return cmd
}

// fetchBackup asks for a backup, and with --wait asks again once other administrators have countersigned.
func (t *tool) fetchBackup(cmd *cobra.Command, req adminapi.KeyBackupAsk) (adminapi.KeyBackup, error) {
	route := within(cmd, adminapi.Routes.KeyBackup)
	made, err := send(t, cmd, route, req)
	if err == nil {
		return made, nil
	}
	if err := t.granted(cmd, err); err != nil {
		return made, err
	}
	return send(t, cmd, route, req)
}

var keyBackupTable = cli.Table[adminapi.KeyBackup]{
	{Title: "At", Value: func(b adminapi.KeyBackup) string { return date(b.At) }},
	{Title: "Audit record", Value: func(b adminapi.KeyBackup) string { return number(b.Sequence) }},
	{Title: "Keys", Value: func(b adminapi.KeyBackup) string { return number(len(b.Keys)) + ": " + strings.Join(b.Keys, " ") }},
	{Title: "Without a copy", Value: func(b adminapi.KeyBackup) string {
		if len(b.Missing) == 0 {
			return "none"
		}
		return strings.Join(b.Missing, " ")
	}},
	{Title: "Backup key", Value: func(b adminapi.KeyBackup) string { return strings.Join(b.BackupKeys, " ") }},
	{Title: "SHA-256", Value: func(b adminapi.KeyBackup) string { return cmp.Or(b.SHA256, "- (a dry run writes no file)") }},
}

// report has the appliance record whether a backup is in its file. A backup is good without that record.
func (t *tool) report(cmd *cobra.Command, route adminapi.Route[adminapi.Kept, adminapi.None], sum string, problem error) {
	kept := adminapi.Kept{SHA256: sum}
	if problem != nil {
		text := problem.Error()
		kept.Problem = strings.ToValidUTF8(text[:min(len(text), mostProblem)], "")
	}
	if _, err := send(t, cmd, route, kept); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "the audit does not say what became of the backup: %v\n", err)
	}
}

// mostProblem bounds what report sends of an error, in bytes.
const mostProblem = 400

func (t *tool) store() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "Manage the database"}
	var out string
	backup := verb("backup --out FILE", "Copy the database while the appliance serves, and write its signed statement to FILE.sig", func(cmd *cobra.Command, _ []string) error {
		route := within(cmd, adminapi.Routes.StoreBackup)
		if isDry(cmd) {
			return previewChange(t, cmd, adminapi.Routes.StoreBackup, adminapi.Ask{DryRun: true})
		}
		if err := writable(out); err != nil {
			return err
		}
		if err := writable(out + sigSuffix); err != nil {
			return err
		}
		made, err := t.copyStore(cmd, route, out)
		if err != nil {
			if err := t.granted(cmd, err); err != nil {
				return err
			}
			made, err = t.copyStore(cmd, route, out)
		}
		if err != nil {
			return err
		}
		return storeCopyTable.One(t.printer(cmd), made)
	})
	quorumFlags(backup)
	backup.Flags().Bool("dry-run", false, dryRunHelp)
	backup.Flags().StringVar(&out, "out", "", outHelp)
	cmd.AddCommand(backup)
	return cmd
}

var storeCopyTable = cli.Table[adminapi.StoreCopy]{
	{Title: "Recovery point", Value: func(c adminapi.StoreCopy) string { return date(c.At) + ", audit record " + number(c.Sequence) }},
	{Title: "Bytes", Value: func(c adminapi.StoreCopy) string { return number(c.Size) }},
	{Title: "SHA-256", Value: func(c adminapi.StoreCopy) string { return c.SHA256 }},
}

// sigSuffix is the suffix of the statement beside a copy of the database.
const sigSuffix = ".sig"

type copyRoute = adminapi.Route[adminapi.Ask, []byte]

// copyStore writes the database to a file and its statement beside it. It first removes the statement of an earlier
// copy, so that a statement never lies beside another file than its own.
func (t *tool) copyStore(cmd *cobra.Command, route copyRoute, path string) (made adminapi.StoreCopy, err error) {
	c, err := t.caller()
	if err != nil {
		return made, err
	}
	made, database, err := c.CopyStore(cmd.Context(), route)
	if err != nil {
		return made, explain(err)
	}
	defer func() {
		_ = database.Close() // it was read, or an error is returned
		t.report(cmd, adminapi.Routes.StoreKept, made.SHA256, err)
	}()
	if err := os.Remove(path + sigSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return made, fault.BackupFile.With("path", path+sigSuffix).Of(err)
	}
	if err := writeWhole(path, func(w io.Writer) error { return copyChecked(w, database, made) }); err != nil {
		return made, err
	}
	statement := made.Statement
	made.Statement = nil
	return made, writeBytes(path+sigSuffix, statement)
}

// copyChecked copies a database and compares it with its description.
func copyChecked(w io.Writer, database io.Reader, want adminapi.StoreCopy) error {
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), database)
	if err != nil {
		return fault.CopyAborted.Of(err)
	}
	if n != want.Size || hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
		return fault.CopyIncomplete.Error()
	}
	return nil
}

// writeWhole writes a file as [durable.Replace] does. Its errors have exit code 74, unless write returned an error
// with another code.
func writeWhole(path string, write func(io.Writer) error) error {
	err := durable.Replace(path, write)
	var known *fault.Error
	if errors.As(err, &known) {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return fault.BackupFile.With("path", path).Of(err)
}

// writable returns an error if path cannot become a new file or replace an existing one. It is called before an approval
// is spent on a backup that could not be written.
func writable(path string) error {
	if path == "" {
		return fault.NoBackupFile.Error()
	}
	err := replaceable(path)
	if err == nil {
		err = durable.Probe(path)
	}
	return fault.BackupFile.With("path", path).Of(err)
}

// replaceable refuses a directory, a device and everything else that a file must not replace.
func replaceable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("it is a directory")
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	}
	return nil
}

func writeBytes(path string, b []byte) error {
	return writeWhole(path, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}
