package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"syscall"

	"countersign/internal/fault"
)

// MaxBytes is the longest secret that is read, in bytes.
const MaxBytes = 4096

// FileError says why a file is refused as a secret. Err has neither the path nor any content of the file.
type FileError struct {
	Path string
	Err  error
	row  fault.Row
}

func (e *FileError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// ExitCode returns 77.
func (e *FileError) ExitCode() int { return int(e.row.Exit) }

// Hint returns a command that makes the file acceptable, or what to write into it.
func (e *FileError) Hint() string { return e.row.Advice }

// ReadFile reads the one line of a file that only this process and root can change, and that no other user can read
// (see private). Errors are [*FileError]: the file cannot be read, or [Line] refuses its text.
func ReadFile(name string) (Bytes, error) {
	return readFile(name, func(info os.FileInfo) (fault.Row, error) { return private(name, info) })
}

// ReadGuardedFile is [ReadFile] for a file in a directory that another program guards, such as systemd. The file may be
// readable for its group or by an ACL, but not for every user.
func ReadGuardedFile(name string) (Bytes, error) {
	return readFile(name, func(info os.FileInfo) (row fault.Row, err error) {
		if info.Mode().Perm()&0o007 != 0 {
			return fault.SecretGuarded.With("path", name), fmt.Errorf("mode %04o lets every user use the file", info.Mode().Perm())
		}
		return row, nil
	})
}

func readFile(name string, check func(os.FileInfo) (fault.Row, error)) (Bytes, error) {
	raw, row, err := readRaw(name, check)
	if err == nil {
		raw, err = Line(raw)
	}
	if err != nil {
		var named *os.PathError
		if errors.As(err, &named) {
			err = named.Err // FileError has the path
		}
		return nil, &FileError{name, err, row}
	}
	return raw, nil
}

func readRaw(name string, check func(os.FileInfo) (fault.Row, error)) (raw []byte, row fault.Row, err error) {
	row = fault.SecretFile
	inherited := name == "/dev/stdin" || slices.Contains([]string{"/dev/fd", "/proc/self/fd"}, path.Dir(name))
	flags := os.O_RDONLY
	if !inherited {
		flags |= syscall.O_NONBLOCK // opening a FIFO fails below and does not hang here
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return nil, row, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat() // of the opened file, which another program cannot exchange
	switch {
	case err != nil:
		return nil, row, err
	case inherited && !info.Mode().IsRegular():
	case !info.Mode().IsRegular():
		return nil, row, errors.New("not a regular file")
	default:
		if refused, err := check(info); err != nil {
			return nil, refused, err
		}
	}
	raw, err = io.ReadAll(io.LimitReader(f, MaxBytes+3+int64(len(byteOrderMark))))
	return raw, row, err
}

// private checks owner and mode of a file that holds a secret. Its owner is this process's user or root, others have no
// access, and the group cannot write. The group may read a file of root if this process is in that group. The row has
// the command for the owner.
func private(name string, info os.FileInfo) (row fault.Row, err error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fault.SecretFile, errors.New("its owner is unknown")
	}
	mode, self := info.Mode().Perm(), uint32(os.Geteuid())
	groups, _ := os.Getgroups() // without them the group counts as foreign
	own := slices.Contains(append(groups, os.Getegid()), int(stat.Gid))
	switch {
	case stat.Uid != self && stat.Uid != 0:
		return fault.SecretOwner.With("user", userName(self), "path", name),
			fmt.Errorf("it belongs to %s: its owner must be %s or root", userName(stat.Uid), userName(self))
	case mode&0o077 == 0, stat.Uid == 0 && own && mode&0o037 == 0:
		return row, nil
	case stat.Uid == self:
		return fault.SecretMode.With("path", name), fmt.Errorf("mode %04o lets users other than its owner use the file", mode)
	default:
		return fault.SecretGroup.With("group", strconv.Itoa(os.Getegid()), "path", name),
			fmt.Errorf("mode %04o and group %d let users other than root and %s use the file", mode, stat.Gid, userName(self))
	}
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.Username
	}
	return strconv.Itoa(int(uid))
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// Line returns the one line of a secret, without its line end (Unix or Windows) and without a byte order mark. A text that
// is empty, longer than [MaxBytes], in UTF-16, or of more than one line is an error: trying it could cost a try.
func Line(raw []byte) (Bytes, error) {
	line := bytes.TrimSuffix(bytes.TrimSuffix(bytes.TrimPrefix(raw, byteOrderMark), []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, errors.New("it is empty")
	case len(line) > MaxBytes:
		return nil, fmt.Errorf("it is longer than %d bytes", MaxBytes)
	case bytes.HasPrefix(raw, []byte("\xff\xfe")), bytes.HasPrefix(raw, []byte("\xfe\xff")):
		return nil, errors.New("it is UTF-16: save it as UTF-8")
	case bytes.ContainsAny(line, "\r\n\x00"):
		return nil, errors.New("it has more than one line, or a NUL byte")
	}
	return line, nil
}
