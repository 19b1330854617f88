package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/internal/cli"

	"countersign/internal/durable"
)

// keyBackup writes all keys, sealed, with the trust and the policy, to one file.
func (t *tool) keyBackup() *cobra.Command {
	var req admin.BackUpKeys
	var out string
	cmd := &cobra.Command{
		Use: "backup --out FILE", Args: cobra.NoArgs, Short: "Write every key, sealed for the backup key, and the trust settings to one file",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := t.api()
			if err != nil {
				return err
			}
			made, err := t.fetchBackup(cmd, a, req)
			if err != nil {
				return err
			}
			if !req.DryRun {
				if err := writeBytes(out, made.File); err != nil {
					return err
				}
			}
			made.File = nil
			return keyBackupTable.One(t.printer(cmd), made)
		},
	}
	quorumFlags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only tell what the backup would cover")
	cmd.Flags().StringVar(&out, "out", "", "file to write, mode 0600; one that is there is replaced as a whole")
	cmd.Flags().BoolVar(&req.Partial, "partial", false, "though some keys have no sealed copy and will not come back")
	_ = cmd.MarkFlagRequired("out") // the flag is there
	return cmd
}

// fetchBackup asks for a backup, and with --wait again once others have countersigned.
func (t *tool) fetchBackup(cmd *cobra.Command, a *api, req admin.BackUpKeys) (made admin.KeyBackup, err error) {
	path := within(cmd, "key/backup")
	if err = a.post(cmd.Context(), path, req, &made); err == nil {
		return made, nil
	}
	if err := t.waiting(cmd, err); err != nil {
		return made, err
	}
	return made, a.post(cmd.Context(), path, req, &made)
}

var keyBackupTable = cli.Table[admin.KeyBackup]{
	{Title: "At", Value: func(b admin.KeyBackup) string { return date(b.At) }},
	{Title: "Audit record", Value: func(b admin.KeyBackup) string { return number(b.Sequence) }},
	{Title: "Keys", Value: func(b admin.KeyBackup) string {
		return number(len(b.Keys)) + ": " + strings.Join(b.Keys, " ")
	}},
	{Title: "Without a copy", Value: func(b admin.KeyBackup) string {
		if len(b.Missing) == 0 {
			return "none"
		}
		return strings.Join(b.Missing, " ")
	}},
	{Title: "Backup key", Value: func(b admin.KeyBackup) string { return strings.Join(b.BackupKeys, " ") }},
	{Title: "SHA-256", Value: func(b admin.KeyBackup) string { return b.SHA256 }},
}

// store is the noun of the database.
func (t *tool) store() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "Look after the database"}
	var out string
	backup := &cobra.Command{
		Use: "backup --out FILE", Args: cobra.NoArgs, Short: "Copy the database while the appliance serves, with FILE.sig beside it that vouches for it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := t.api()
			if err != nil {
				return err
			}
			made, err := a.copyStore(cmd.Context(), out)
			if err != nil {
				return err
			}
			return storeCopyTable.One(t.printer(cmd), made)
		},
	}
	backup.Flags().StringVar(&out, "out", "", "file to write, mode 0600; one that is there is replaced as a whole")
	_ = backup.MarkFlagRequired("out") // the flag is there
	cmd.AddCommand(backup)
	return cmd
}

var storeCopyTable = cli.Table[admin.StoreCopy]{
	{Title: "Recovery point", Value: func(c admin.StoreCopy) string { return date(c.At) + ", audit record " + number(c.Sequence) }},
	{Title: "Bytes", Value: func(c admin.StoreCopy) string { return number(c.Size) }},
	{Title: "SHA-256", Value: func(c admin.StoreCopy) string { return c.SHA256 }},
}

// sigSuffix is of the statement beside a copy of the database.
const sigSuffix = ".sig"

// copyStore writes the database to a file and its statement beside it. The statement
// of an earlier copy goes first, so that none ever lies beside a file that it is not of.
func (a *api) copyStore(ctx context.Context, path string) (made admin.StoreCopy, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://appliance"+admin.Prefix+"store/backup", nil)
	if err != nil {
		return made, err
	}
	patient := http.Client{Transport: a.client.Transport} // as long as the database is large
	res, err := patient.Do(req)
	if err != nil {
		return made, unanswered(err)
	}
	defer func() { _ = res.Body.Close() }() // it was read, or an error is returned
	if res.StatusCode != http.StatusOK {
		return made, problem(res)
	}
	if err := json.Unmarshal([]byte(res.Header.Get(admin.HeaderCopy)), &made); err != nil {
		return made, fmt.Errorf("reading the answer of the appliance: %w", err)
	}
	if err := os.Remove(path + sigSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return made, cli.Fail(cli.IO, err, "")
	}
	if err := writeWhole(path, func(w io.Writer) error { return copyChecked(w, res.Body, made) }); err != nil {
		return made, err
	}
	statement := made.Statement
	made.Statement = nil
	return made, writeBytes(path+sigSuffix, statement)
}

// copyChecked copies a body and holds it against what was said of it.
func copyChecked(w io.Writer, body io.Reader, want admin.StoreCopy) error {
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), body)
	if err != nil {
		return cli.Fail(cli.IO, err, "is there room for it? the daemon needs as much again beside the database")
	}
	if n != want.Size || hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
		return cli.Fail(cli.TryAgain, errors.New("the copy did not arrive whole"), "run it again")
	}
	return nil
}

// writeWhole writes a file as [durable.Replace] does. Its errors have exit code 74, unless
// write returned an error with another code.
func writeWhole(path string, write func(io.Writer) error) error {
	var wrote error
	err := durable.Replace(path, func(w io.Writer) error { wrote = write(w); return wrote })
	if err == nil {
		return nil
	}
	if wrote == nil {
		err = cli.Fail(cli.IO, err, "name a file in a directory that you may write")
	}
	return fmt.Errorf("writing %s: %w", path, err)
}
