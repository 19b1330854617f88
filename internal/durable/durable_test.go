package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func open(t *testing.T, path string, before Before) *Dir {
	t.Helper()
	d, err := Open(path, before)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestWriteLeavesOldOrNew(t *testing.T) {
	errDisk := errors.New("disk failed")
	var order []string
	for _, step := range []string{"create", "write", "sync", "rename", "sync dir"} {
		path := t.TempDir()
		d := open(t, path, nil)
		if err := d.Write("f", []byte("old")); err != nil {
			t.Fatal(err)
		}
		order = nil
		d.before = func(op string) error {
			order = append(order, op)
			if op == step {
				return errDisk
			}
			return nil
		}
		if err := d.Write("f", []byte("new")); !errors.Is(err, errDisk) {
			t.Fatalf("failing at %s: error %v", step, err)
		}
		want := "old"
		if step == "sync dir" {
			want = "new"
		}
		if got, err := d.Read("f"); err != nil || string(got) != want {
			t.Errorf("failing at %s: file holds %q, %v; want %q", step, got, err, want)
		}
		if names, err := d.List("."); err != nil || !slices.Equal(names, []string{"f", "lock"}) {
			t.Errorf("failing at %s: List = %v, %v", step, names, err)
		}
		d.before = nil
		if err := d.Write("f", []byte("n")); err != nil {
			t.Errorf("after failing at %s: %v", step, err)
		}
		if got, err := d.Read("f"); err != nil || string(got) != "n" {
			t.Errorf("after failing at %s: file holds %q, %v", step, got, err)
		}
	}
	if got := strings.Join(order, ", "); got != "create, write, sync, rename, sync dir" {
		t.Errorf("steps of a write: %s", got)
	}
}

func TestModesAndSubdirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d := open(t, path, nil)
	if err := d.Write("sub/f", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700, "sub": 0o700, "sub/f": 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, %v; want %v", name, info.Mode().Perm(), err, want)
		}
	}
	if err := os.Chmod(d.Path("sub/f"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("sub/f"); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("reading a file that a group may read: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, nil)
	if _, err := Open(path, nil); !errors.Is(err, ErrLocked) {
		t.Fatalf("second Open: %v, want ErrLocked", err)
	}
	if err := d.Write("f", []byte("x")); err != nil {
		t.Fatal(err)
	}
	v := View(path)
	if got, err := v.Read("f"); err != nil || string(got) != "x" {
		t.Errorf("View reads %q, %v", got, err)
	}
	if err := errors.Join(v.Write("f", nil), v.Remove("f")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("View changes: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, nil)
}

func TestRemove(t *testing.T) {
	d := open(t, t.TempDir(), nil)
	if err := d.Write("f", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Remove("f"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Read("f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestLocks(t *testing.T) {
	dir := t.TempDir()
	for path, lock := range map[string]func(string) (io.Closer, error){filepath.Join(dir, "lock"): Lock, dir: LockDir} {
		held, err := lock(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lock(path); !errors.Is(err, ErrLocked) {
			t.Errorf("%s is locked twice: %v", path, err)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := lock(path)
		if err != nil {
			t.Fatalf("%s after Close: %v", path, err)
		}
		_ = again.Close()
	}
	missing := filepath.Join(dir, "missing")
	if _, err := LockDir(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
	if _, err := os.Lstat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Error("LockDir created something")
	}
}

// TestInUse: asking whether a lock is held does not keep another process from taking it.
func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if used, err := InUse(path); err != nil || used {
		t.Errorf("a file that does not exist is in use: %v, %v", used, err)
	}
	for range 100 {
		asked := make(chan error, 1)
		go func() {
			for range 20 {
				if _, err := InUse(path); err != nil {
					asked <- err
					return
				}
			}
			asked <- nil
		}()
		held, err := Lock(path)
		if err != nil {
			t.Fatal(err)
		}
		if used, err := InUse(path); err != nil || !used {
			t.Fatalf("a lock that is held is in use: %v, %v", used, err)
		}
		if err := errors.Join(held.Close(), <-asked); err != nil {
			t.Fatal(err)
		}
	}
}
