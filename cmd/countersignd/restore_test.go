package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm/memory"
	"countersign/internal/fault"
	"countersign/policy"
	"countersign/protocol"
)

// lostAppliance writes the backup of an appliance and the copy of its database to dir, and returns its root.
func lostAppliance(t *testing.T, dir string) protocol.PublicKey {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, now := t.Context(), time.Now()
	public, _, err := custody.Make(custody.Scheme{Threshold: 2, Shares: 3})
	must(err)
	token := keylife.Backed{Token: memory.New(), Recipient: public}
	trust, err := keylife.Ceremony(ctx, token, "test.example", now)
	must(err)
	trust.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: now}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(dir, "lost.db")})
	must(err)
	defer func() { must(s.Close()) }()
	seals := store.NewSeals(nil)
	must(errors.Join(keyuse.SealKeys(ctx, token, trust.Keys, seals), s.Unseal(ctx, seals, nil),
		s.AddTrust(ctx, trust, audit.NewRecord(audit.KindCeremony, "trust", nil))))
	root := protocol.PublicKey(trust.Keys[0].Public)
	keys, err := keyuse.Load(ctx, token, s, keyuse.Pins{Root: root})
	must(err)
	state, err := backup.StateOf(ctx, s)
	must(err)
	file, err := backup.Write(ctx, keys, backup.NewDocument(state, backup.Point{}, now), now)
	must(err)
	c, err := s.Copy(ctx)
	must(err)
	database, err := io.ReadAll(c)
	must(errors.Join(err, c.Close()))
	statement, err := backup.Vouch(ctx, keys, backup.Copy{
		SHA256: sha256.Sum256(database), Size: uint64(len(database)), Point: backup.PointOf(c.Point),
	}, now)
	must(err)
	for name, text := range map[string][]byte{"keys": file, "db": database, "db.sig": statement} {
		must(os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return root
}

// TestRestoreRoot: restore verifies the files with the root of --root, else with trust.root. With the
// right one it gets as far as the shares, which it reads once the backup is verified.
func TestRestoreRoot(t *testing.T) {
	dir := t.TempDir()
	right, wrong := lostAppliance(t, dir), lostAppliance(t, t.TempDir())
	verified := errors.New("the backup is verified")
	for _, c := range []struct {
		flag, pinned string
		want         error
	}{
		{right.String(), "", verified},
		{right.String(), right.String(), verified},
		{right.String(), wrong.String(), verified},
		{"", right.String(), verified},
		{wrong.String(), "", backup.ErrOther},
		{wrong.String(), right.String(), backup.ErrOther},
		{"", wrong.String(), backup.ErrOther},
		{"", "", fault.NoRootNamed.Error()},
	} {
		config := filepath.Join(t.TempDir(), "config.toml")
		text := fmt.Sprintf("state_dir = %q\n[hsm]\npin = { source = \"file\", path = \"pin\" }\n[trust]\ndomain = \"test.example\"\n", t.TempDir())
		if c.pinned != "" {
			text += fmt.Sprintf("root = %q\n", c.pinned)
		}
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := restoreCommand(&config)
		args := []string{"--backup", filepath.Join(dir, "keys"), "--database", filepath.Join(dir, "db"), "--share", filepath.Join(dir, "none")}
		if c.flag != "" {
			args = append(args, "--root", c.flag)
		}
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		err := cmd.ExecuteContext(t.Context())
		if c.want == verified {
			if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "none") {
				t.Errorf("--root %.8s, trust.root %.8s: %v, want the missing share", c.flag, c.pinned, err)
			}
		} else if !errors.Is(err, c.want) && err.Error() != c.want.Error() {
			t.Errorf("--root %.8s, trust.root %.8s: %v, want %v", c.flag, c.pinned, err, c.want)
		}
	}
}
