// Package profiles has the masks: for each vendor's PKCS#11 module, the facts by which the fault shim makes SoftHSM look
// like it. softhsm-test/faultshim/mask.h describes their form. Each fact ends in a comment with the abbreviations of its
// sources, which the head of the file names. A mask shows what the appliance does when something is absent. It proves
// nothing about the device.
package profiles

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed *.mask
var files embed.FS

const extension = ".mask"

// Profile is one mask.
type Profile struct {
	Name  string // luna-fips
	Title string // the product and its version, in one line
	text  []byte
}

// All returns every profile, in the order of their names.
func All() ([]Profile, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("listing masks: %w", err)
	}
	var all []Profile
	for _, e := range entries {
		text, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("reading mask: %w", err)
		}
		title, _, _ := strings.Cut(strings.TrimPrefix(string(text), "# "), "\n")
		all = append(all, Profile{Name: strings.TrimSuffix(e.Name(), extension), Title: title, text: text})
	}
	return all, nil
}

// Named returns one profile.
func Named(name string) (Profile, error) {
	all, err := All()
	if err != nil {
		return Profile{}, err
	}
	i := slices.IndexFunc(all, func(p Profile) bool { return p.Name == name })
	if i < 0 {
		return Profile{}, fmt.Errorf("no mask %q: package profiles has a file for each", name)
	}
	return all[i], nil
}

// Write writes the mask into a directory and returns the assignment by which processes use it.
func (p Profile) Write(dir string) (env string, err error) {
	path := filepath.Join(dir, p.Name+extension)
	if err := os.WriteFile(path, p.text, 0o600); err != nil {
		return "", fmt.Errorf("writing mask: %w", err)
	}
	return "FAULTSHIM_MASK=" + path, nil
}

// UserPassword reports whether a PIN of the module is a user, a colon and a password.
func (p Profile) UserPassword() bool {
	return strings.Contains(string(p.text), "\nlogin user:password")
}
