package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Secret says where a secret is, never what it is. In a file:
//
//	pin = { source = "file", path = "var/pin" }       mode 0600 or less
//	pin = { source = "credential", name = "pin" }     systemd LoadCredential=
//	pin = { source = "fd", fd = 3 }                   inherited file descriptor
//	pin = { source = "prompt" }                       asked on the terminal
//	pin = { source = "unlock" }                       given later, by countersignctl hsm unlock
type Secret struct {
	Source string `toml:"source"` // file, credential, fd, prompt or unlock
	Path   string `toml:"path"`   // of a file
	Name   string `toml:"name"`   // of a credential
	FD     *int   `toml:"fd"`     // file descriptor, 0 or more
}

// SourceUnlock is a secret that is not there at the start.
const SourceUnlock = "unlock"

var secretSources = []string{"file", "credential", "fd", "prompt", SourceUnlock}

// UnmarshalTOML reads the table. It never repeats a value in an error: who
// writes a secret here by mistake must not find it in a log as well.
func (s *Secret) UnmarshalTOML(raw any) error {
	table, ok := raw.(map[string]any)
	if !ok {
		return errors.New("a secret is never written here, only where it is: { source = \"file\", path = \"…\" }")
	}
	*s = Secret{}
	for key, value := range table {
		if err := s.set(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (s *Secret) set(key string, value any) error {
	texts := map[string]*string{"source": &s.Source, "path": &s.Path, "name": &s.Name}
	if into, ok := texts[key]; ok {
		text, isText := value.(string)
		if !isText {
			return fmt.Errorf("%s: want a string", key)
		}
		*into = text
	}
	if key == "fd" {
		n, isNumber := value.(int64)
		if !isNumber || n < 0 || n > 1<<20 {
			return errors.New("fd: want the number of a file descriptor")
		}
		fd := int(n)
		s.FD = &fd
	}
	return nil // other keys are reported as unknown, with the rest of the file
}

// check returns the problems of the reference, which is at key.
func (s Secret) check(key string) []Problem {
	var problems []Problem
	fail := func(format string, args ...any) {
		problems = append(problems, Problem{Key: key, Text: fmt.Sprintf(format, args...)})
	}
	if !slices.Contains(secretSources, s.Source) {
		fail("source %q: want one of %s", s.Source, strings.Join(secretSources, ", "))
		return problems
	}
	for _, detail := range []struct {
		name, source string
		given        bool
	}{
		{"path", "file", s.Path != ""},
		{"name", "credential", s.Name != ""},
		{"fd", "fd", s.FD != nil},
	} {
		switch wanted := detail.source == s.Source; {
		case wanted && !detail.given:
			fail("source %q needs %s", s.Source, detail.name)
		case !wanted && detail.given:
			fail("%s does not belong to source %q", detail.name, s.Source)
		}
	}
	if s.Source == "credential" && (strings.ContainsAny(s.Name, "/\x00") || s.Name == "." || s.Name == "..") {
		fail("name %q: want the name of a credential, not a path", s.Name)
	}
	return problems
}

// String says where the secret is.
func (s Secret) String() string {
	switch {
	case s.Source == "file":
		return "file " + s.Path
	case s.Source == "credential":
		return "credential " + s.Name
	case s.Source == "fd" && s.FD != nil:
		return fmt.Sprintf("file descriptor %d", *s.FD)
	}
	return s.Source
}
