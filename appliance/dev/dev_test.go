package dev

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"countersign/internal/config"
)

func newDir(t *testing.T, files ...string) *dir {
	t.Helper()
	d := &dir{Options: Options{Dir: filepath.Join(t.TempDir(), "dev")}}
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if err := os.WriteFile(d.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func (d *dir) has(name string) bool {
	_, err := os.Lstat(d.path(name))
	return err == nil
}

// TestForeign: a directory of another appliance is refused and stays as it is.
func TestForeign(t *testing.T) {
	for _, name := range []string{"pin", "countersign.db"} {
		d := newDir(t, name, "dev.json")
		err := Run(t.Context(), Options{Dir: d.Dir, StartTimeout: time.Second}, func(context.Context, *config.Appliance) (Daemon, error) {
			t.Error("an appliance was started")
			return nil, errors.New("started")
		})
		if !errors.Is(err, ErrForeign) || !d.has(name) || !d.has("dev.json") || d.has("lock") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Take(t.Context(), d.Dir); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInUse: one process has the directory at a time.
func TestInUse(t *testing.T) {
	d := newDir(t)
	if err := d.take(); err != nil {
		t.Fatal(err)
	}
	other := &dir{Options: d.Options}
	if err := other.take(); !errors.Is(err, ErrInUse) || other.removeInfo() != nil {
		t.Errorf("%v", err)
	}
	if err := d.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := other.take(); err != nil {
		t.Error(err)
	}
}

// TestUnfinished: the leftovers of an interrupted first start are removed, and a directory that was used is kept.
func TestUnfinished(t *testing.T) {
	leftovers := []string{"pin", "so-pin", "token", "countersign.db", "countersign.db-wal", "anchor", "relay"}
	cut := newDir(t, append([]string{"lock", "mine"}, leftovers...)...)
	used := newDir(t, append([]string{"lock", readyMark}, leftovers...)...)
	if err := errors.Join(cut.removeUnfinished(), used.removeUnfinished()); err != nil {
		t.Fatal(err)
	}
	for _, name := range leftovers {
		if cut.has(name) || !used.has(name) {
			t.Errorf("%s: %v in the interrupted one, %v in the used one", name, cut.has(name), used.has(name))
		}
	}
	if !cut.has("mine") {
		t.Error("a file of the user was removed")
	}
}

// TestConfig: the configuration is valid, and nothing listens beyond loopback.
func TestConfig(t *testing.T) {
	d := newDir(t)
	d.Module, d.SecondModule = "/module.so", "/second.so"
	if err := d.config().Validate(); err != nil {
		t.Error(err)
	}
	cfg, err := Config(d.Dir)
	if err != nil || cfg.API.Listen != "127.0.0.1:0" || cfg.Ops.Listen != "127.0.0.1:0" || cfg.StateDir != d.Dir {
		t.Errorf("%+v, %v", cfg, err)
	}
	if len(cfg.HSM.Tokens()) != 1 || len(d.config().HSM.Tokens()) != 2 {
		t.Errorf("%d and %d tokens", len(cfg.HSM.Tokens()), len(d.config().HSM.Tokens()))
	}
}
