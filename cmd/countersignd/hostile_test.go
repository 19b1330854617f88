package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/appliance/store"
	"countersign/internal/config"
)

// TestListOfMigrate: no name of the database reaches the terminal as it is.
func TestListOfMigrate(t *testing.T) {
	m := &migration{}
	m.contents.Devices = []store.Device{
		{Name: "evil", SPIFFEID: "spiffe://d/device/evil", Display: "Door", Floor: 1, Status: store.Active},
		{Name: "gate\x1b[1A\x1b[2K\x1b[1A\x1b[2K\rdevice gate", SPIFFEID: "spiffe://d/device/gate", Display: "Gate", Floor: 1, Status: store.Active},
	}
	if err := m.readDevices(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := strings.Join(m.list, "\n"); strings.Contains(out, "\x1b") {
		t.Errorf("a name in the list wipes the line above it off the terminal: %q", out)
	}
}

// TestTwoRestores: while one works on the database, no other begins.
func TestTwoRestores(t *testing.T) {
	cfg := &config.Appliance{StateDir: t.TempDir()}
	cfg.Store.Path = filepath.Join(cfg.StateDir, "countersign.db")
	first, second := &restoration{cfg: cfg}, &restoration{cfg: cfg}
	turn, err := first.alone()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.alone(); !errors.Is(err, errTwoRestores) {
		t.Errorf("a second restore: %v", err)
	}
	if err := turn.Close(); err != nil {
		t.Fatal(err)
	}
	if turn, err = second.alone(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(turn.Close(), os.WriteFile(cfg.Store.Path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := second.alone(); !errors.Is(err, errStoreThere) {
		t.Errorf("a store came meanwhile: %v", err)
	}
}
