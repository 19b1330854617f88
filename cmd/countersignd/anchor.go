package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"countersign/appliance/anchor"
	"countersign/appliance/keyring"
	"countersign/appliance/store/sqlite"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/protocol"
)

// anchorPath is the file that the database is held against.
func anchorPath(cfg *config.Appliance) string { return filepath.Join(cfg.StateDir, "anchor") }

// parseRoot reads a root's public key, the digits that init prints; "" is none.
func parseRoot(digits string) (key protocol.PublicKey, err error) {
	if digits == "" {
		return key, nil
	}
	raw, err := hex.DecodeString(digits)
	if err == nil {
		key, err = protocol.ParsePublicKey(raw)
	}
	if err != nil {
		return key, fmt.Errorf("root %q: %w", digits, err)
	}
	return key, nil
}

// rootLine is what the administrator is given to keep.
func rootLine(key protocol.PublicKey) string {
	return fmt.Sprintf("root = \"%s\" # for [trust] in config.toml, and for restore: keep it elsewhere too", key)
}

func anchorCommand(path *string) *cobra.Command {
	var root, dir string
	cmd := &cobra.Command{
		Use: "anchor --root KEY", Args: cobra.NoArgs,
		Short: "Write state_dir/anchor for a store whose roots lead from, or to, a root that you know",
		Long: "Write state_dir/anchor, without which the daemon serves no store: nothing is trusted on first use.\n" +
			"KEY is any root of this appliance as you know it from elsewhere than the store: the line that init printed,\n" +
			"a backup of it, or what another phone or device has pinned. An anchor that is there only goes forward.",
	}
	cmd.Flags().StringVar(&root, "root", "", "public key of a root of this appliance, 66 hexadecimal digits")
	cmd.Flags().StringVar(&dir, "dir", "", "directory of countersignd dev, in place of the configuration")
	_ = cmd.MarkFlagRequired("root") // the flag is there
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := anchored(*path, dir)
		if err != nil {
			return err
		}
		a, err := writeAnchor(cmd.Context(), cfg, root)
		if err != nil {
			return explain(err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "root %d, %s, is anchored in %s\n", a.Root, a.Key, anchorPath(cfg))
		return err
	}
	return cmd
}

// anchored is the configuration that names store and state directory.
func anchored(path, dir string) (*config.Appliance, error) {
	if dir == "" {
		return config.LoadAppliance(path)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return (&dev{dir: dir}).config(), nil
}

// writeAnchor verifies the store under a root and moves the anchor to its newest. It
// takes no token.
func writeAnchor(ctx context.Context, cfg *config.Appliance, root string) (a anchor.Anchor, err error) {
	key, err := parseRoot(root)
	if err == nil && root == "" {
		err = fmt.Errorf("--root is empty")
	}
	if err != nil {
		return a, cli.Fail(cli.Usage, err, "KEY is 66 hexadecimal digits, as countersignd init prints them")
	}
	if !exists(cfg.Store.Path) {
		return a, fmt.Errorf("%s: %w", cfg.Store.Path, keyring.ErrNotInitialized)
	}
	file, err := anchor.Open(anchorPath(cfg))
	if err != nil {
		return a, err
	}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: cfg.Store.Path, Logger: hclog.NewNullLogger()})
	if err != nil {
		return a, fmt.Errorf("opening the store %s: %w", cfg.Store.Path, err)
	}
	claims, err := s.Claims(ctx)
	if err == nil {
		err = keyring.Verify(claims, keyring.Pins{Anchor: file, Root: key})
	}
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	return file.Current(), err
}
