package harness

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
)

// Edit replaces a text that occurs exactly once in a file of the product.
type Edit struct {
	File     string // from the root of the repository
	Old, New string
}

// Broken builds countersignd with edits into a new directory, and hsm-worker too if an edit is below hsm/, next to the
// other programs as they are. If tests names a package, its tests are built with the same edits as a program. The caller
// removes the directory.
func (b Bin) Broken(ctx context.Context, edits []Edit, tests string) (broken Bin, err error) {
	dir, err := os.MkdirTemp("", "countersign-broken-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	overlay, err := Overlay(ctx, dir, edits)
	if err != nil {
		return "", err
	}
	edited := []string{"countersignd"}
	if slices.ContainsFunc(edits, func(e Edit) bool { return strings.HasPrefix(e.File, "hsm/") }) {
		edited = append(edited, "hsm-worker")
	}
	var builds [][]string
	for _, p := range edited {
		builds = append(builds, []string{"build", "-overlay", overlay, "-o", dir + "/", "countersign/cmd/" + p})
	}
	if tests != "" {
		builds = append(builds, []string{"test", "-c", "-overlay", overlay, "-o", dir + "/", tests})
	}
	for _, args := range builds {
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, p := range Programs {
		if !slices.Contains(edited, p) {
			err = errors.Join(err, os.Symlink(b.Path(p), filepath.Join(dir, p)))
		}
	}
	return Bin(dir), err
}

// Overlay writes edited copies of files to dir, and the list of them that `go build -overlay`
// reads. It returns the path of the list.
func Overlay(ctx context.Context, dir string, edits []Edit) (string, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	texts, replace := map[string][]byte{}, map[string]string{}
	for _, e := range edits {
		path := filepath.Join(root, e.File)
		if texts[path] == nil {
			if texts[path], err = os.ReadFile(path); err != nil {
				return "", err
			}
			replace[path] = filepath.Join(dir, fmt.Sprintf("broken-%d.go", len(replace)))
		}
		if texts[path], err = e.Apply(texts[path]); err != nil {
			return "", err
		}
		if err := os.WriteFile(replace[path], texts[path], 0o600); err != nil {
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

// Apply returns the edited text. It is an error if the old text does not occur exactly once.
func (e Edit) Apply(text []byte) ([]byte, error) {
	if n := bytes.Count(text, []byte(e.Old)); n != 1 {
		return nil, fmt.Errorf("%s has %q %d times, want once", e.File, e.Old, n)
	}
	return bytes.Replace(text, []byte(e.Old), []byte(e.New), 1), nil
}
