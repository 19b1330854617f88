package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"countersign/appliance/anchor"
	"countersign/appliance/dev"
	"countersign/appliance/keyuse"
	"countersign/appliance/store/sqlite"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/protocol"
)

// anchorPath returns the path of the anchor, which the database is compared with.
func anchorPath(cfg *config.Appliance) string { return filepath.Join(cfg.StateDir, "anchor") }

// parseRoot parses the public key of a root in hexadecimal; "" is the zero key.
func parseRoot(digits string) (key protocol.PublicKey, err error) {
	if digits == "" {
		return key, nil
	}
	raw, err := hex.DecodeString(digits)
	if err == nil {
		key, err = protocol.ParsePublicKey(raw)
	}
	if err != nil {
		return key, fmt.Errorf("%q: %w", digits, err)
	}
	return key, nil
}

// requireRoot is parseRoot for a flag that must be given.
func requireRoot(digits string) (key protocol.PublicKey, err error) {
	key, err = parseRoot(digits)
	if err == nil && digits == "" {
		err = errors.New("--root is empty: want the public key of a root")
	}
	if err != nil {
		err = fault.RootDigits.Of(err)
	}
	return key, err
}

// rootLine returns the line that the administrator must keep.
func rootLine(key protocol.PublicKey) string {
	return fmt.Sprintf("root = \"%s\" # for [trust] in config.toml, and for restore: keep it elsewhere too", key)
}

func anchorCommand(path *string) *cobra.Command {
	var root, dir string
	cmd := &cobra.Command{
		Use: "anchor --root KEY", Args: cobra.NoArgs,
		Short: "Write state_dir/anchor for a store whose chain of roots contains a root that you know",
		Long: "Write state_dir/anchor. Without it the daemon serves no store, because nothing is trusted on first use.\n" +
			"KEY is any root of this appliance from another source than the store: the line that init printed,\n" +
			"or the root that a phone or device has pinned. An existing anchor only moves forward.",
	}
	cmd.Flags().StringVar(&root, "root", "", "public key of a root of this appliance, 66 hexadecimal digits")
	cmd.Flags().StringVar(&dir, "dir", "", "directory of countersignd dev, instead of the configuration")
	_ = cmd.MarkFlagRequired("root") // the flag exists
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

// anchored returns the configuration that names store and state directory.
func anchored(path, dir string) (*config.Appliance, error) {
	if dir == "" {
		return config.LoadAppliance(path)
	}
	return dev.Config(dir)
}

// writeAnchor verifies the store under a root and moves the anchor to its newest root. It
// needs no token.
func writeAnchor(ctx context.Context, cfg *config.Appliance, root string) (a anchor.Anchor, err error) {
	key, err := requireRoot(root)
	if err != nil {
		return a, err
	}
	if !exists(cfg.Store.Path) {
		return a, fault.NoStore.With("path", cfg.Store.Path).Error()
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
		err = (keyuse.Pins{Anchor: file, Root: key}).Verify(claims)
	}
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	return file.Current(), err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
