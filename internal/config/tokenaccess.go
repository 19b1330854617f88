package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrTokenDenied means that the user of this process may not use the files of the token.
var ErrTokenDenied = errors.New("no permission for the token's files")

// TokenError returns err, the error of opening a token, with its cause if this process may not use the token's files:
// a module that may not read them reports that it has no token, or CKR_GENERAL_ERROR. It then wraps [ErrTokenDenied],
// and names the file, its owner and its group. It knows the files of SoftHSM only.
func TokenError(module string, err error) error {
	if err == nil || !strings.Contains(filepath.Base(module), "softhsm") {
		return err
	}
	if denied := softHSMAccess(softHSMConfig(os.Getenv)); denied != nil {
		return fmt.Errorf("%w: %w", denied, err)
	}
	return err
}

// softHSMAccess returns why this process may not use the tokens of a configuration, or nil.
func softHSMAccess(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return denied(path, err)
	}
	dir := tokenDirectory(string(raw))
	tokens, err := os.ReadDir(dir)
	if err != nil {
		return denied(dir, err)
	}
	for _, token := range tokens {
		path := filepath.Join(dir, token.Name())
		if token.IsDir() {
			if err := denied(path, unix.Access(path, unix.R_OK|unix.W_OK|unix.X_OK)); err != nil {
				return err
			}
		}
	}
	return nil
}

// softHSMConfig returns the path of SoftHSM's configuration (softhsm2.conf(5)).
func softHSMConfig(getenv func(string) string) string {
	if path := getenv("SOFTHSM2_CONF"); path != "" {
		return path
	}
	own := filepath.Join(getenv("HOME"), ".config", "softhsm2", "softhsm2.conf")
	if _, err := os.Stat(own); err == nil {
		return own
	}
	return "/etc/softhsm/softhsm2.conf"
}

func tokenDirectory(conf string) string {
	for line := range strings.Lines(conf) {
		name, value, _ := strings.Cut(line, "=")
		if strings.TrimSpace(name) == "directories.tokendir" {
			return strings.TrimSpace(value)
		}
	}
	return "/var/lib/softhsm/tokens"
}

// denied describes an error of a path that says that this process has no permission, and returns nil for any other. It
// names the highest directory that denies it.
func denied(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return nil
	}
	for {
		info, statErr := os.Stat(path)
		if statErr == nil {
			return fmt.Errorf("%w: %s belongs to %s", ErrTokenDenied, path, owners(info))
		}
		if up := filepath.Dir(path); up != path {
			path = up
			continue
		}
		return fmt.Errorf("%w: %s", ErrTokenDenied, path)
	}
}

// owners names the user and the group of a file, and its mode.
func owners(info fs.FileInfo) string {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "another user"
	}
	owner, group := strconv.FormatUint(uint64(s.Uid), 10), strconv.FormatUint(uint64(s.Gid), 10)
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return fmt.Sprintf("user %s and group %s, mode %04o", owner, group, info.Mode().Perm())
}
