package restore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/recovery/restore"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/policy"
	"countersign/protocol"
)

// lost is an appliance of which only files and shares are left.
type lost struct {
	*testing.T
	dir    string
	root   protocol.PublicKey
	shares []custody.Share
	wrap   []byte // MAC under mac@1
}

func must[V any](t *testing.T) func(V, error) V {
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// newLost founds an appliance and keeps its backup, a copy of its database with its
// statement, and the shares.
func newLost(t *testing.T) *lost {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	l := &lost{T: t, dir: t.TempDir()}
	public, shares, err := custody.Make(custody.Scheme{Threshold: 2, Shares: 3})
	check(t, err)
	l.shares = shares
	token := keylife.Backed{Token: memory.New(), Recipient: public}
	trust := must[store.Trust](t)(keylife.Ceremony(ctx, token, "test.example", now))
	trust.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: now}
	l.root = protocol.PublicKey(trust.Keys[0].Public)
	s := must[store.Store](t)(sqlite.Open(ctx, sqlite.Config{Path: l.path("lost.db")}))
	seals := store.NewSeals(nil)
	check(t, keyuse.SealKeys(ctx, token, trust.Keys, seals), s.Unseal(ctx, seals, nil),
		s.AddTrust(ctx, trust, audit.NewRecord(audit.KindCeremony, "trust", nil)))
	keys := must[*keyuse.Keys](t)(keyuse.Load(ctx, token, s, keyuse.Pins{Root: l.root}))
	l.wrap = l.mac(keys)

	state := must[backup.State](t)(backup.StateOf(ctx, s))
	file := must[[]byte](t)(backup.Write(ctx, keys, backup.NewDocument(state, backup.Point{}, now), now))
	check(t, os.WriteFile(l.path("keys"), file, 0o600))
	c := must[store.Copy](t)(s.Copy(ctx))
	database := must[[]byte](t)(io.ReadAll(c))
	statement := must[[]byte](t)(backup.Vouch(ctx, keys, backup.Copy{
		SHA256: sha256.Sum256(database), Size: uint64(len(database)), Point: backup.PointOf(c.Point),
	}, now))
	check(t, os.WriteFile(l.path("db"), database, 0o600), os.WriteFile(l.path("db.sig"), statement, 0o600), c.Close(), s.Close())
	return l
}

func (l *lost) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lost) mac(keys *keyuse.Keys) []byte {
	l.Helper()
	mac := must[keyring.Key](l.T)(keys.Current(keyring.MAC, time.Now()))
	return must[[]byte](l.T)(keys.MAC(l.Context(), mac, []byte("input")))
}

// config describes a restore onto a token, on a host with an empty state directory.
func (l *lost) config(token hsm.Token) restore.Config {
	l.Helper()
	state := l.TempDir()
	return restore.Config{
		Host: restore.Host{
			StateDir: state, Store: filepath.Join(state, "countersign.db"), Label: "second",
			Anchor: must[*anchor.File](l.T)(anchor.Open(filepath.Join(state, "anchor"))),
			Seals:  store.NewSeals(nil), Log: hclog.NewNullLogger(),
			Token: func(context.Context) (hsm.Token, error) { return token, nil },
		},
		Known: backup.Known{Root: l.root}, Domain: "test.example", BackupFile: l.path("keys"), DatabaseFile: l.path("db"),
		Shares: func() ([]custody.Share, error) { return l.shares[1:], nil },
	}
}

// TestRun: an appliance returns onto a fresh token with its keys and its root, and a
// second restore does not replace it.
func TestRun(t *testing.T) {
	for name, unsigned := range map[string]bool{"signed": false, "unsigned": true} {
		t.Run(name, func(t *testing.T) {
			l := newLost(t)
			token := memory.New()
			c := l.config(token)
			if c.Unsigned = unsigned; unsigned {
				check(t, os.Remove(l.path("db.sig")))
			}
			report := must[restore.Report](t)(restore.Run(t.Context(), c))
			if report.Newest != l.root || len(report.Missing) != 0 || report.Salvaged != nil || report.Forged != nil {
				t.Errorf("report %+v", report)
			}
			check(t, c.Unfinished())
			at := must[anchor.Anchor](t)(anchor.Read(filepath.Join(c.StateDir, "anchor")))
			s := must[store.Store](t)(sqlite.Open(t.Context(), sqlite.Config{Path: c.Store, Existing: true}))
			defer func() { check(t, s.Close()) }()
			pins := keyuse.Pins{Anchor: c.Anchor}
			check(t, keyuse.Unseal(t.Context(), token, s, store.NewSeals(nil), pins))
			keys := must[*keyuse.Keys](t)(keyuse.Load(t.Context(), token, s, pins))
			if at.Key != l.root || !bytes.Equal(l.mac(keys), l.wrap) {
				t.Errorf("anchor %+v, or another mac key", at)
			}
			if names, _ := os.ReadDir(c.StateDir); len(names) > 5 { // anchor, database, its wal, shm and lock
				t.Errorf("left in the state directory: %v", names)
			}
			if _, err := restore.Run(t.Context(), c); !errors.Is(err, restore.ErrStoreExists) {
				t.Errorf("a second restore: %v", err)
			}
		})
	}
}

// TestRefused: a restore that is refused leaves nothing on the host and the token.
func TestRefused(t *testing.T) {
	l := newLost(t)
	for name, c := range map[string]struct {
		change func(*restore.Config)
		want   error
	}{
		"another root": {func(c *restore.Config) { c.Known.Root = protocol.PublicKey{2} }, backup.ErrOther},
		"domain":       {func(c *restore.Config) { c.Domain = "other.example" }, restore.ErrDomain},
		"no backup":    {func(c *restore.Config) { c.BackupFile = l.path("none") }, restore.ErrFiles},
		"no statement": {func(c *restore.Config) { c.DatabaseFile = l.path("lost.db") }, restore.ErrNoStatement},
		"one share": {func(c *restore.Config) {
			c.Shares = func() ([]custody.Share, error) { return l.shares[:1], nil }
		}, custody.ErrFew},
		"no token": {func(c *restore.Config) {
			c.Host.Token = func(context.Context) (hsm.Token, error) { return nil, hsm.ErrUnavailable }
		}, hsm.ErrUnavailable},
	} {
		token := memory.New()
		config := l.config(token)
		c.change(&config)
		if _, err := restore.Run(t.Context(), config); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		keys := must[[]hsm.Key](t)(token.Keys(t.Context()))
		if names, _ := os.ReadDir(config.StateDir); len(names)+len(keys) != 0 {
			t.Errorf("%s left %v and %d keys", name, names, len(keys))
		}
	}
	used := memory.New()
	must[hsm.Key](t)(used.Generate(t.Context(), hsm.KeySpec{Label: "kem@1", Usage: hsm.DeriveP256}))
	if _, err := restore.Run(t.Context(), l.config(used)); !errors.Is(err, backup.ErrTokenUsed) {
		t.Errorf("onto a used token: %v", err)
	}
}

// dying is a token that disappears after some restored keys, for good.
type dying struct {
	hsm.Token
	left int
}

func (d *dying) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	if d.left--; d.left < 0 {
		return hsm.Key{}, hsm.ErrUnavailable
	}
	return d.Token.Restore(ctx, r)
}

func (d *dying) Destroy(ctx context.Context, id hsm.KeyID) error {
	if d.left < 0 {
		return hsm.ErrUnavailable
	}
	return d.Token.Destroy(ctx, id)
}

// TestInterrupted: an interrupted restore blocks everything else until it is repeated.
func TestInterrupted(t *testing.T) {
	l := newLost(t)
	token := memory.New()
	c := l.config(&dying{Token: token, left: 5})
	if _, err := restore.Run(t.Context(), c); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("on a token that disappears: %v", err)
	}
	if err := c.Unfinished(); !errors.Is(err, restore.ErrInterrupted) {
		t.Errorf("interrupted: %v", err)
	}
	c.Host.Token = func(context.Context) (hsm.Token, error) { return token, nil }
	c.Seals = store.NewSeals(nil)
	must[restore.Report](t)(restore.Run(t.Context(), c))
	check(t, c.Unfinished())
	if keys := must[[]hsm.Key](t)(token.Keys(t.Context())); len(keys) != 24 {
		t.Errorf("%d keys on the token, want 24", len(keys))
	}
}
