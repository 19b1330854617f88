package durable

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// WriteFile replaces the file at path. When it returns nil, the new content is on the disk.
// When it fails or the process dies, the file holds either the old content or the new one.
// Only one process may write a path at a time: the temporary file is path with ".tmp" added.
func WriteFile(path string, content []byte, mode fs.FileMode) error {
	return replace(path, content, mode, nil)
}

// Publish replaces the file at path as WriteFile does, but does not wait for the disk: readers
// always see a whole file, and after a crash of the host it may be old or empty. It is for
// files that only describe the running process.
func Publish(path string, content []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path+tempSuffix, content, mode); err != nil {
		return err
	}
	return os.Rename(path+tempSuffix, path)
}

// Replace is WriteFile for content that write produces, and for paths that several processes
// may write at once: its temporary file has a unique name. The file has mode 0600.
// Replace returns the error of write unchanged, and the file is then as it was before.
func Replace(path string, write func(io.Writer) error) error {
	f, err := beside(path)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one that matters
	}
	return err
}

// Probe returns an error if Replace could not write the path now: it creates the temporary file, and removes it.
func Probe(path string) error {
	f, err := beside(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// beside creates the temporary file of Replace.
func beside(path string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
}

// Create writes a new file with mode 0600: [fs.ErrExist] if the path exists.
func Create(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Copy copies a file to a new one with mode 0600, and returns its size in bytes and its
// SHA-256: [fs.ErrExist] if the new path exists.
func Copy(from, to string) (size int64, sum [sha256.Size]byte, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, sum, err
	}
	defer func() { _ = in.Close() }() // opened for reading
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return 0, sum, err
	}
	hash := sha256.New()
	size, err = io.Copy(io.MultiWriter(out, hash), in)
	return size, [sha256.Size]byte(hash.Sum(nil)), errors.Join(err, out.Sync(), out.Close())
}

// Rename renames a file and makes the new name durable.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncFile writes what a file holds to the disk.
func SyncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncDir makes the entries of a directory durable.
func SyncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// ErrLocked is returned by Lock and Open while another process holds the lock.
var ErrLocked = errors.New("another process is using it")

// Lock takes an exclusive lock (flock(2)) on a file, which it creates with mode 0600 if
// need be. Closing the result releases the lock, and so does the end of the process. It
// returns [ErrLocked] if another process keeps the lock for longer than [InUse] does, after 250 ms.
func Lock(path string) (io.Closer, error) {
	return lock(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW)
}

// LockDir is Lock for a directory: [fs.ErrNotExist] if it does not exist.
func LockDir(path string) (io.Closer, error) {
	return lock(path, os.O_RDONLY|syscall.O_DIRECTORY)
}

func lock(path string, flags int) (io.Closer, error) {
	f, err := os.OpenFile(path, flags, fileMode)
	if err != nil {
		return nil, err
	}
	for tries := lockTries; ; tries-- {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || tries == 0 {
			break
		}
		time.Sleep(lockPause)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}

// How long Lock tries again. InUse in another process has a shared lock for a moment.
const (
	lockTries = 50
	lockPause = 5 * time.Millisecond
)

// InUse reports whether another process has the lock of [Lock] on a file. A file that does not exist is not in use.
func InUse(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// replace calls before, which may be nil, ahead of each step; see [Before].
func replace(path string, content []byte, mode fs.FileMode, before Before) error {
	var f *os.File
	err := before.step("create", func() (err error) {
		f, err = os.OpenFile(path+tempSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
		return err
	})
	if err != nil {
		return err
	}
	// A temporary file that a failure leaves behind is truncated by the next replace.
	err = before.step("write", func() error { _, err := f.Write(content); return err })
	if err == nil {
		err = before.step("sync", f.Sync)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := before.step("rename", func() error { return os.Rename(path+tempSuffix, path) }); err != nil {
		return err
	}
	return before.step("sync dir", func() error { return SyncDir(filepath.Dir(path)) })
}
