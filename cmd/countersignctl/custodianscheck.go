package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"countersign/appliance/custody"
	"countersign/internal/cli"
	"countersign/internal/custodian"
)

func (t *tool) custodiansCheck() *cobra.Command {
	var public string
	cmd := &cobra.Command{
		Use: "check --share FILE", Args: cobra.NoArgs, Short: "Open shares and tell whether they are good, and of which backup key",
	}
	flags := custodian.AddFlags(cmd)
	cmd.Flags().StringVar(&public, "backup-key", "", "backup.pub that the shares are to be of")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		noCore()
		shares, err := flags.Read(cli.TerminalOf(cmd).Secret)
		if err != nil {
			return err
		}
		var words []shareWords
		for i, s := range shares {
			if err := fits(s, public); err != nil {
				return fmt.Errorf("%s: %w", flags.Shares[i], err)
			}
			words = append(words, wordsOf(flags.Shares[i], s))
		}
		return shareTable.List(t.printer(cmd), words)
	}
	return cmd
}

// fits holds a share against backup.pub, if one is named.
func fits(s custody.Share, path string) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return cli.Fail(cli.IO, err, "")
	}
	key, err := custody.ParsePublicPEM(text)
	if err != nil {
		return cli.Fail(cli.Config, err, "--backup-key is the backup.pub of countersignctl key custodians init")
	}
	if custody.PointOf(key) != s.Key() {
		return custodian.Explain(fmt.Errorf("%s, not of %s: %w", s, custody.PointOf(key), custody.ErrMixed))
	}
	return nil
}
