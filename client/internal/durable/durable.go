// Package durable keeps small files in one directory so that a crash at any point
// leaves each of them whole: the old content or the new one.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrLocked is returned by Open while another process has the directory open.
var ErrLocked = errors.New("another process is using it")

// ErrReadOnly is returned by everything that would change a directory from View.
var ErrReadOnly = errors.New("opened for reading only")

const (
	lockName   = "lock"
	tempSuffix = ".tmp"
	dirMode    = 0o700
	fileMode   = 0o600
)

// Before is called before each operation that changes the directory, with its
// name. The operation is left out and fails with the error it returns, if any.
// It is how tests make a disk fail or a process die between two steps.
type Before func(operation string) error

// Dir is a directory of files with mode 0600, locked for one process. It is safe
// for one goroutine at a time.
type Dir struct {
	path   string
	before Before
	lock   *os.File // nil: reading only
}

// Open makes the directory if need be and takes its lock, an advisory flock(2) that
// ends with the process at the latest. before may be nil.
func Open(path string, before Before) (*Dir, error) {
	d := &Dir{path: path, before: before}
	if err := d.makeDir(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	d.lock = f
	return d, nil
}

// View opens a directory for reading, without its lock. That each file is whole
// holds for a viewer too.
func View(path string) *Dir { return &Dir{path: path} }

// Close gives up the lock.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// makeDir makes one directory whose entry survives a crash.
func (d *Dir) makeDir(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := d.step("mkdir", func() error { return os.MkdirAll(path, dirMode) }); err != nil {
		return err
	}
	return d.step("sync parent", func() error { return syncDir(filepath.Dir(path)) })
}

func (d *Dir) step(name string, run func() error) error {
	if d.before != nil {
		if err := d.before(name); err != nil {
			return err
		}
	}
	return run()
}

// Path gives where a file of this name is.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Read reads a file: [fs.ErrNotExist] if there is none, and an error if others than
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

// Write replaces a file as a whole: when it returns without an error the new
// content is on the disk; when it fails, or never returns, either content is.
// name may have one directory in front.
func (d *Dir) Write(name string, data []byte) error {
	if d.lock == nil {
		return ErrReadOnly
	}
	path := d.Path(name)
	if err := d.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := d.writeTemp(path+tempSuffix, data); err != nil {
		return err
	}
	if err := d.step("rename", func() error { return os.Rename(path+tempSuffix, path) }); err != nil {
		return err
	}
	return d.step("sync dir", func() error { return syncDir(filepath.Dir(path)) })
}

// writeTemp leaves the temporary file behind when it fails: the next Write of
// the same name truncates it.
func (d *Dir) writeTemp(path string, data []byte) (err error) {
	var f *os.File
	if err := d.step("create", func() (err error) {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
		return err
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := d.step("write", func() error { _, err := f.Write(data); return err }); err != nil {
		return err
	}
	return d.step("sync", f.Sync)
}

// Remove deletes a file durably; one that is not there is no error.
func (d *Dir) Remove(name string) error {
	if d.lock == nil {
		return ErrReadOnly
	}
	path := d.Path(name)
	if err := d.step("remove", func() error { return os.Remove(path) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.step("sync dir", func() error { return syncDir(filepath.Dir(path)) })
}

// List names the files of a subdirectory in the order of their names. What a crash
// left half written is not among them.
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

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
