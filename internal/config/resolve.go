package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"countersign/internal/secret"
)

// maxSecret is the longest secret accepted, in bytes.
const maxSecret = 4096

// SecretError is the reason why a secret is not available.
type SecretError struct {
	Secret Secret
	Err    error

	hint string
}

func (e *SecretError) Error() string {
	return fmt.Sprintf("reading secret from %s: %v", e.Secret, e.Err)
}

// Unwrap returns the cause.
func (e *SecretError) Unwrap() error { return e.Err }

// ExitCode returns 77.
func (e *SecretError) ExitCode() int { return exitSecret }

// Hint returns advice for the user.
func (e *SecretError) Hint() string {
	if e.hint != "" {
		return e.hint
	}
	return "put the secret there, or name another place in the configuration"
}

// SecretSources gives [Secret.Resolve] access to the process.
type SecretSources struct {
	What           string                                // name of the secret in a prompt: "PIN of token countersign"
	CredentialsDir string                                // $CREDENTIALS_DIRECTORY; "" if there is none
	Prompt         func(question string) ([]byte, error) // nil if no user can be asked
}

// Resolve reads the secret, once: a second call may find a descriptor closed.
// One trailing newline is cut off; a secret that is empty, has more than one
// line or more than 4096 bytes is refused, for with a PIN each wrong try may be
// the last. Errors are [*SecretError].
func (s Secret) Resolve(from SecretSources) (secret.Bytes, error) {
	raw, err := s.read(from)
	if err == nil {
		raw, err = oneLine(raw)
	}
	if err != nil {
		failure := &SecretError{Secret: s, Err: err}
		var loose *modeError
		if errors.As(err, &loose) {
			failure.hint = "run: chmod 600 " + loose.path
		}
		return nil, failure
	}
	return raw, nil
}

// inherited refuses a descriptor that the process opened itself: those are closed on exec, and
// descriptors passed to the process are not.
func inherited(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 || fd == 1 || fd == 2 {
		return fmt.Errorf("no descriptor %d was passed to the process", fd)
	}
	return nil
}

func (s Secret) read(from SecretSources) ([]byte, error) {
	if problems := s.check(""); len(problems) > 0 {
		return nil, errors.New(problems[0].Text)
	}
	switch s.Source {
	case "file":
		return readPrivate(s.Path, 0o077)
	case "credential":
		if from.CredentialsDir == "" {
			return nil, errors.New("CREDENTIALS_DIRECTORY is not set: the process was not started by systemd with LoadCredential=")
		}
		// systemd guards the directory, and grants the service's user by an
		// ACL whose mask shows as group bits.
		return readPrivate(filepath.Join(from.CredentialsDir, s.Name), 0o007)
	case "fd":
		if err := inherited(*s.FD); err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(*s.FD), s.String())
		if f == nil {
			return nil, errors.New("no such file descriptor")
		}
		return readAndClose(f)
	}
	if from.Prompt == nil {
		return nil, errors.New("there is no terminal to ask on")
	}
	return from.Prompt(from.What + ": ")
}

// modeError refuses a file that others than its owner may use.
type modeError struct {
	path string
	mode os.FileMode
}

func (e *modeError) Error() string {
	return fmt.Sprintf("mode %04o lets others than the owner use the file", e.mode)
}

// readPrivate reads a regular file without any of the forbidden mode bits. It checks the mode
// of the opened file, so that the file cannot be exchanged in between.
func readPrivate(path string, forbidden os.FileMode) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must fail below, not hang here.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			return nil, pathErr.Err // the path is said already
		}
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("not a regular file")
	case info.Mode().Perm()&forbidden != 0:
		err = &modeError{path: path, mode: info.Mode().Perm()}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return readAndClose(f)
}

func readAndClose(f *os.File) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+3))
	return raw, errors.Join(err, f.Close())
}

func oneLine(raw []byte) ([]byte, error) {
	line := bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, errors.New("it is empty")
	case len(line) > maxSecret:
		return nil, fmt.Errorf("it is longer than %d bytes", maxSecret)
	case bytes.ContainsAny(line, "\r\n\x00"):
		return nil, errors.New("it has more than one line, or a NUL")
	}
	return line, nil
}
