// Package shimtest builds the fault shim for tests that are run without the Makefile.
package shimtest

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"countersign/softhsm-test/shim"
)

// errSources: no C file where the module's sources are.
var errSources = errors.New("no sources")

// Build compiles faultshim.so into dir, with the flags of the Makefile.
func Build(dir string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("building the fault shim: %w", err)
	}
	sources, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(root)), "softhsm-test", "faultshim", "*.c"))
	if err != nil || len(sources) == 0 {
		return fmt.Errorf("building the fault shim: %w", errors.Join(err, errSources))
	}
	args := []string{
		"-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden",
		"-o", filepath.Join(dir, shim.Library),
	}
	args = append(append(args, sources...), "-ldl", "-lpthread")
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the fault shim: %w: %s", err, text)
	}
	return nil
}
