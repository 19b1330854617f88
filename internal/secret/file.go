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
	"strings"
	"syscall"
)

// MaxBytes is the longest secret that is read, in bytes.
const MaxBytes = 4096

// FileError says why a file is refused as a secret. Err has neither the path nor any content of the file.
type FileError struct {
	Path   string
	Err    error
	advice string
}

func (e *FileError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// ExitCode returns 77.
func (e *FileError) ExitCode() int { return 77 }

// Hint returns a command that makes the file acceptable, or "".
func (e *FileError) Hint() string { return e.advice }

// ReadFile reads the one line of a file that only this process and root can change, and that no other user can read
// (see private). Errors are [*FileError]: the file cannot be read, or [Line] refuses its text.
func ReadFile(name string) (Bytes, error) {
	return readFile(name, private)
}

// ReadGuardedFile is [ReadFile] for a file in a directory that another program guards, such as systemd. The file may be
// readable for its group or by an ACL, but not for every user.
func ReadGuardedFile(name string) (Bytes, error) {
	return readFile(name, func(info os.FileInfo) (advice string, err error) {
		if info.Mode().Perm()&0o007 != 0 {
			return "run: chmod o= FILE", fmt.Errorf("mode %04o lets every user use the file", info.Mode().Perm())
		}
		return "", nil
	})
}

func readFile(name string, check func(os.FileInfo) (string, error)) (Bytes, error) {
	raw, advice, err := readRaw(name, check)
	if err == nil {
		raw, err = Line(raw)
	}
	if err != nil {
		var named *os.PathError
		if errors.As(err, &named) {
			err = named.Err // FileError has the path
		}
		return nil, &FileError{name, err, advice}
	}
	return raw, nil
}

func readRaw(name string, check func(os.FileInfo) (string, error)) (raw []byte, advice string, err error) {
	inherited := name == "/dev/stdin" || slices.Contains([]string{"/dev/fd", "/proc/self/fd"}, path.Dir(name))
	flags := os.O_RDONLY
	if !inherited {
		flags |= syscall.O_NONBLOCK // opening a FIFO fails below and does not hang here
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat() // of the opened file, which another program cannot exchange
	switch {
	case err != nil:
		return nil, "", err
	case inherited && !info.Mode().IsRegular():
	case !info.Mode().IsRegular():
		return nil, "", errors.New("not a regular file")
	default:
		if advice, err = check(info); err != nil {
			return nil, strings.ReplaceAll(advice, "FILE", name), err
		}
	}
	raw, err = io.ReadAll(io.LimitReader(f, MaxBytes+3+int64(len(byteOrderMark))))
	return raw, "", err
}

// private checks owner and mode of a file that holds a secret. Its owner is this process's user or root, others have no
// access, and the group cannot write. The group may read a file of root if this process is in that group. advice is a
// command for the owner, in which FILE is the file's path.
func private(info os.FileInfo) (advice string, err error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("its owner is unknown")
	}
	mode, self := info.Mode().Perm(), uint32(os.Geteuid())
	groups, _ := os.Getgroups() // without them the group counts as foreign
	own := slices.Contains(append(groups, os.Getegid()), int(stat.Gid))
	switch {
	case stat.Uid != self && stat.Uid != 0:
		return fmt.Sprintf("run as root: chown %s FILE && chmod 600 FILE", userName(self)),
			fmt.Errorf("it belongs to %s: its owner must be %s or root", userName(stat.Uid), userName(self))
	case mode&0o077 == 0, stat.Uid == 0 && own && mode&0o037 == 0:
		return "", nil
	case stat.Uid == self:
		return "run: chmod 600 FILE", fmt.Errorf("mode %04o lets users other than its owner use the file", mode)
	default:
		const command = "run as root: chgrp %[1]d FILE && chmod 640 FILE (in Kubernetes: fsGroup %[1]d and defaultMode 0440)"
		return fmt.Sprintf(command, os.Getegid()),
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
