// Package shimtest builds the fault shim for tests that run without the Makefile.
package shimtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"countersign/softhsm-test/shim"
)

// Build compiles [shim.Library] into dir, as the Makefile does into bin.
func Build(dir string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("building the fault shim: %w", err)
	}
	build := filepath.Join(strings.TrimSpace(string(root)), "softhsm-test", "faultshim", "build")
	if text, err := exec.Command(build, filepath.Join(dir, shim.Library)).CombinedOutput(); err != nil {
		return fmt.Errorf("building the fault shim: %w: %s", err, text)
	}
	return nil
}

// New returns the shim of a directory of programs or, if that has none, one that it builds in dir. Files in dir control
// it.
func New(bin, dir string) (shim.Shim, error) {
	if _, err := os.Stat(filepath.Join(bin, shim.Library)); err != nil {
		bin = dir
		if err := Build(dir); err != nil {
			return shim.Shim{}, err
		}
	}
	return shim.New(bin, dir)
}
