package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/dev"
	"countersign/appliance/recovery/restore"
	"countersign/internal/cli"
	"countersign/internal/config"
)

// errExpect means that the list differs from the one that the administrator confirmed.
var errExpect = errors.New("the list is another than the one that was confirmed")

func migrateCommand(path *string) *cobra.Command {
	var seal bool
	var dir, root, expect string
	cmd := &cobra.Command{
		Use: "migrate --seal --root KEY", Args: cobra.NoArgs,
		Short: "Seal a store of a release before the seals",
		Long: "Seal a store of a release before the seals, once, while no daemon runs.\n" +
			"The roots are verified under KEY, the records of clients and administrators by their MACs. Anything that grants\n" +
			"something and cannot be verified ends: open activation codes, waiting approvals, open change requests and\n" +
			"stored answers. The rest is printed as a list: read it, and confirm it by its hash with --expect.\n" +
			"The unsealed store is kept next to the sealed one.",
	}
	cmd.Flags().BoolVar(&seal, "seal", false, "seal the store")
	cmd.Flags().StringVar(&root, "root", "", "public key of a root of this appliance, as printed by countersignctl key show root")
	cmd.Flags().StringVar(&expect, "expect", "", "hash of the list that you have read; without it the list is printed and nothing changes")
	cmd.Flags().StringVar(&dir, "dir", "", "directory of countersignd dev, instead of the configuration")
	_ = cmd.MarkFlagRequired("seal") // the flags exist
	_ = cmd.MarkFlagRequired("root")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.LoadAppliance(*path)
		if dir != "" {
			cfg, err = dev.Take(cmd.Context(), dir)
		}
		if err != nil {
			return explain(err)
		}
		return explain(migrate(cmd, cfg, root, expect))
	}
	return cmd
}

func migrate(cmd *cobra.Command, cfg *config.Appliance, root, expect string) (err error) {
	key, err := requireRoot(root)
	if err != nil {
		return err
	}
	from := environmentOf(cmd, cfg.Log)
	p, err := newParts(cfg, from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	m, err := restore.Migrate(cmd.Context(), p.host(cfg, from), key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	list := listText(m.List)
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(list)))
	switch expect {
	case "":
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\nNothing was changed. If all of this is right, seal it:\n"+
			"countersignd migrate --seal --root %s --expect %s\n", list, root, sum)
		return err
	case sum:
		sealed, err := m.Seal(cmd.Context(), sum)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "sealed: %d records in force verified, %d clients are revoked\n"+
			"The unsealed store is %s: remove it once all is well.\n"+
			"Next: countersignd serve, then countersignctl key backup and store backup.\n", sealed.Records, sealed.Revoked, sealed.Before)
		return err
	}
	return fmt.Errorf("it has hash %s: %w", sum, errExpect)
}

func listText(lines []string) string {
	var text strings.Builder
	for _, line := range lines {
		text.WriteString(cli.Printable(line) + "\n")
	}
	return text.String()
}
