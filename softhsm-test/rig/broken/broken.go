// Package broken builds programs of the product with some of its text replaced, so that a
// harness can show that it fails without what it tests. What cannot be broken by writing
// to a database is broken so.
package broken

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"countersign/softhsm-test/rig"
)

// Edit replaces one text of the product, which must be there exactly once.
type Edit struct {
	File     string // from the root of the repository
	Old, New string
}

// Program is one that is built with the edits.
type Program struct {
	Package string // with its import path
	Flags   string // of the linker
}

// Build builds programs with edits into a directory, and puts the others there as they
// are.
func Build(ctx context.Context, dir string, from rig.Bin, edits []Edit, programs ...Program) error {
	overlay, err := Overlay(ctx, dir, edits)
	if err != nil {
		return err
	}
	var built []string
	for _, p := range programs {
		args := []string{"build", "-overlay", overlay, "-ldflags", p.Flags, "-o", dir + "/", p.Package}
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", p.Package, err, out)
		}
		built = append(built, filepath.Base(p.Package))
	}
	bin, err := filepath.Abs(string(from))
	for _, p := range rig.Programs {
		if !slices.Contains(built, p) {
			err = errors.Join(err, os.Symlink(filepath.Join(bin, p), filepath.Join(dir, p)))
		}
	}
	return err
}

// Daemon builds a countersignd with edits beside the other programs, in a new directory,
// which the caller removes.
func Daemon(ctx context.Context, from rig.Bin, edits []Edit) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "countersign-broken-"); err != nil {
		return "", err
	}
	if err = Build(ctx, dir, from, edits, Program{Package: "countersign/cmd/countersignd"}); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// Overlay writes the edited files and the list of them that `go build` reads.
func Overlay(ctx context.Context, dir string, edits []Edit) (string, error) {
	if len(edits) == 0 {
		return "", errors.New("nothing is to be broken")
	}
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	replace := map[string]string{}
	for i, e := range edits {
		path := filepath.Join(root, e.File)
		to, ok := replace[path]
		if !ok {
			to = filepath.Join(dir, fmt.Sprintf("broken-%d.go", i))
			if err := copyText(to, path); err != nil {
				return "", err
			}
			replace[path] = to
		}
		if err := e.Apply(to); err != nil {
			return "", err
		}
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, raw, 0o600)
}

func copyText(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}

// Apply edits a file.
func (e Edit) Apply(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := bytes.Count(text, []byte(e.Old)); n != 1 {
		return fmt.Errorf("%s has %q %d times, want once", e.File, e.Old, n)
	}
	return os.WriteFile(path, bytes.Replace(text, []byte(e.Old), []byte(e.New), 1), 0o600)
}
