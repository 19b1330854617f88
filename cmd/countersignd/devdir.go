package main

import (
	"errors"
	"fmt"
	"os"

	"countersign/internal/durable"
)

// errDirInUse: another dev runs in the directory.
var errDirInUse = errors.New("directory is in use by another countersignd dev")

// errNotDev: the directory holds an appliance that dev did not make.
var errNotDev = errors.New("directory holds a store or a PIN that countersignd dev did not make")

// lock makes the directory this process's own until it ends. Its lock file is also
// the mark of a directory that dev made: no other is touched.
func (d *dev) lock() error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(d.path("lock")); errors.Is(err, os.ErrNotExist) {
		for _, name := range []string{"pin", "countersign.db"} {
			if _, err := os.Lstat(d.path(name)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w", d.dir, errNotDev)
			}
		}
	}
	lock, err := durable.Lock(d.path("lock"))
	if errors.Is(err, durable.ErrLocked) {
		return fmt.Errorf("%s: %w", d.dir, errDirInUse)
	}
	if err != nil {
		return err
	}
	d.locked = lock
	return nil
}

// readyMark is written once token, store and trust domain are whole. Without it
// what is in the directory was never used: a first start that was cut off.
const readyMark = "initialized"

func (d *dev) forgetUnfinished() error {
	if _, err := os.Stat(d.path(readyMark)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range []string{"pin", "so-pin", "pin" + secondSuffix, "so-pin" + secondSuffix, "token", "countersign.db", "countersign.db-wal", "countersign.db-shm", "anchor", "relay"} {
		if err := os.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	return nil
}
