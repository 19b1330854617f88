// Package durable replaces, copies, renames and locks files so that a crash at any point
// leaves each of them whole: the old content or the new one.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrReadOnly is returned by methods that would change a directory that View opened.
var ErrReadOnly = errors.New("opened for reading only")

const (
	lockName   = "lock"
	tempSuffix = ".tmp"
	dirMode    = 0o700
	fileMode   = 0o600
)

// Before is called before each operation that changes the directory, with the name of
// the operation. If it returns an error, the operation does not run and fails with that
// error. Tests use it to make a disk fail or a process die between two steps. It may be nil.
type Before func(operation string) error

func (b Before) step(name string, run func() error) error {
	if b != nil {
		if err := b(name); err != nil {
			return err
		}
	}
	return run()
}

// Dir is a directory of files with mode 0600, locked for one process. It is safe
// for one goroutine at a time.
type Dir struct {
	path   string
	before Before
	lock   io.Closer // nil: opened by View
}

// Open creates the directory if need be and takes its lock, which ends with the process
// at the latest. before may be nil.
func Open(path string, before Before) (*Dir, error) {
	d := &Dir{path: path, before: before}
	if err := d.makeDir(path); err != nil {
		return nil, err
	}
	lock, err := Lock(filepath.Join(path, lockName))
	if err != nil {
		return nil, err
	}
	d.lock = lock
	return d, nil
}

// View opens a directory for reading, without its lock. Each file that it reads is whole.
func View(path string) *Dir { return &Dir{path: path} }

// Close gives up the lock.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// makeDir creates a directory whose entry survives a crash.
func (d *Dir) makeDir(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := d.before.step("mkdir", func() error { return os.MkdirAll(path, dirMode) }); err != nil {
		return err
	}
	return d.before.step("sync parent", func() error { return SyncDir(filepath.Dir(path)) })
}

// Path returns the path of a file in the directory.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Read reads a file: [fs.ErrNotExist] if it does not exist, and an error if users other than
// its owner may read it, since every file here may hold a secret.
func (d *Dir) Read(name string) ([]byte, error) {
	info, err := os.Stat(d.Path(name))
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %#o): chmod 600 it", d.Path(name), info.Mode().Perm())
	}
	return os.ReadFile(d.Path(name))
}

// Write replaces a file of the directory with mode 0600, as [WriteFile] does. name may
// have one directory in front.
func (d *Dir) Write(name string, data []byte) error {
	if d.lock == nil {
		return ErrReadOnly
	}
	path := d.Path(name)
	if err := d.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	return replace(path, data, fileMode, d.before)
}

// Remove deletes a file durably. A file that does not exist is no error.
func (d *Dir) Remove(name string) error {
	if d.lock == nil {
		return ErrReadOnly
	}
	path := d.Path(name)
	if err := d.before.step("remove", func() error { return os.Remove(path) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.before.step("sync dir", func() error { return SyncDir(filepath.Dir(path)) })
}

// List returns the names of the files of a subdirectory in order, without the temporary
// files that a crash left behind.
func (d *Dir) List(sub string) ([]string, error) {
	entries, err := os.ReadDir(d.Path(sub))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasSuffix(e.Name(), tempSuffix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}
