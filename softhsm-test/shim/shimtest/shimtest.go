// Package shimtest builds the fault shim for tests that run without the Makefile.
package shimtest

import (
	"fmt"
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
