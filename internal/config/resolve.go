package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"countersign/internal/fault"
	"countersign/internal/secret"
)

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
func (e *SecretError) ExitCode() int { return int(fault.SecretNone.Exit) }

// Hint returns advice for the user.
func (e *SecretError) Hint() string {
	if e.hint != "" {
		return e.hint
	}
	return fault.SecretNone.Advice
}

// SecretSources gives [Secret.Resolve] access to the process.
type SecretSources struct {
	What           string                                // name of the secret in a prompt: "PIN of token countersign"
	CredentialsDir string                                // $CREDENTIALS_DIRECTORY; "" if there is none
	Prompt         func(question string) ([]byte, error) // nil if no user can be asked
}

// Resolve reads the secret, once: a second call may find a descriptor closed.
// A secret is one line, as [secret.Line] reads it. Errors are [*SecretError].
func (s Secret) Resolve(from SecretSources) (secret.Bytes, error) {
	value, err := s.read(from)
	if err != nil {
		failure := &SecretError{Secret: s, Err: err}
		var file *secret.FileError
		if errors.As(err, &file) {
			failure.Err, failure.hint = file.Err, file.Hint() // the path is said already
		}
		return nil, failure
	}
	return value, nil
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

func (s Secret) read(from SecretSources) (secret.Bytes, error) {
	if problems := s.check(""); len(problems) > 0 {
		return nil, errors.New(problems[0].Text)
	}
	switch s.Source {
	case "file":
		return secret.ReadFile(s.Path)
	case "credential":
		if from.CredentialsDir == "" {
			return nil, errors.New("CREDENTIALS_DIRECTORY is not set: the process was not started by systemd with LoadCredential=")
		}
		// systemd guards the directory, and grants the service's user by an
		// ACL whose mask shows as group bits.
		return secret.ReadGuardedFile(filepath.Join(from.CredentialsDir, s.Name))
	case "fd":
		if err := inherited(*s.FD); err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(*s.FD), s.String())
		if f == nil {
			return nil, errors.New("no such file descriptor")
		}
		raw, err := readAndClose(f)
		if err != nil {
			return nil, err
		}
		return secret.Line(raw)
	}
	if from.Prompt == nil {
		return nil, errors.New("there is no terminal to ask on")
	}
	raw, err := from.Prompt(from.What + ": ")
	if err != nil {
		return nil, err
	}
	return secret.Line(raw)
}

func readAndClose(f *os.File) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(f, secret.MaxBytes+3))
	return raw, errors.Join(err, f.Close())
}
