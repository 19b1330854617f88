package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// maxUnixPath is the longest path that fits into sockaddr_un.sun_path with its final NUL.
const maxUnixPath = 107

// Address is a stream address: "tcp:HOST:PORT" or "unix:PATH". It can be a
// configuration value and a command-line flag. The zero value is no address.
type Address struct {
	network string // "tcp" or "unix"
	target  string // host and port, or path
}

// ParseAddress reads what [Address.String] writes. A port is 0 to 65535, 0
// leaving the choice to the system; a path has at most 107 bytes.
func ParseAddress(s string) (Address, error) {
	network, target, _ := strings.Cut(s, ":")
	a := Address{network: network, target: target}
	var err error
	switch network {
	case "tcp":
		err = checkHostPort(target)
	case "unix":
		err = checkUnixPath(target)
	default:
		err = errors.New("want tcp:HOST:PORT or unix:PATH")
	}
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w", s, err)
	}
	return a, nil
}

// Network returns "tcp" or "unix", as package net expects it.
func (a Address) Network() string { return a.network }

// Target returns the host and port, or the path, as package net expects it.
func (a Address) Target() string { return a.target }

// IsZero reports whether there is no address.
func (a Address) IsZero() bool { return a == Address{} }

func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	return a.network + ":" + a.target
}

// Set makes an Address a command-line flag.
func (a *Address) Set(s string) error {
	parsed, err := ParseAddress(s)
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}

// Type names the flag's value in help texts.
func (a *Address) Type() string { return "address" }

// UnmarshalText makes an Address a configuration value.
func (a *Address) UnmarshalText(text []byte) error { return a.Set(string(text)) }

// MarshalText writes the form that UnmarshalText reads.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// under returns the address with a relative socket path placed in dir.
func (a Address) under(dir string) Address {
	if a.network == "unix" {
		a.target = under(dir, a.target)
	}
	return a
}

func under(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func checkHostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q: want HOST:PORT, and [HOST]:PORT for IPv6", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q: want a number from 0 to 65535", port)
	}
	return nil
}

func checkUnixPath(path string) error {
	switch {
	case path == "":
		return errors.New("the path is missing")
	case path[0] == '@':
		return errors.New("an abstract socket has no permissions: use a path")
	case strings.ContainsRune(path, 0):
		return errors.New("the path contains a NUL")
	case len(path) > maxUnixPath:
		return fmt.Errorf("the socket path has %d bytes, at most %d are possible", len(path), maxUnixPath)
	}
	return nil
}
