// Package softhsmtest is the tests with the real programs and a real PKCS#11 token.
package softhsmtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/softhsm-test/harness"
)

// programs are those that every test of this package starts.
var programs harness.Bin

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "countersign-bin-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }() // at worst it stays in the temporary directory
		programs, err = findPrograms(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code, asked := offlineIfAsked(); asked {
		return code
	}
	return m.Run()
}

// findPrograms takes the directory that COUNTERSIGN_BIN names, or ../bin if it is
// whole and no source is newer, or builds the programs into dir.
func findPrograms(dir string) (harness.Bin, error) {
	if named := os.Getenv("COUNTERSIGN_BIN"); named != "" {
		return harness.Find(named)
	}
	if bin, err := harness.Find("../bin"); err == nil {
		if fresh, err := isFresh(bin); fresh || err != nil {
			return bin, err
		}
	}
	args := []string{"build", "-o", dir + "/"}
	for _, p := range harness.Programs {
		args = append(args, "countersign/cmd/"+p)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs: %w: %s", err, out)
	}
	return harness.Find(dir)
}

// isFresh says whether every program is newer than every source file it could be
// made of.
func isFresh(bin harness.Bin) (bool, error) {
	oldest := time.Now()
	for _, p := range harness.Programs {
		info, err := os.Stat(bin.Path(p))
		if err != nil {
			return false, err
		}
		if info.ModTime().Before(oldest) {
			oldest = info.ModTime()
		}
	}
	errStale := errors.New("stale")
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "bin" || entry.Name() == "softhsm-test"):
			return fs.SkipDir
		case entry.IsDir() || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".md"):
			return nil
		}
		info, err := entry.Info()
		if err == nil && info.ModTime().After(oldest) {
			return errStale
		}
		return err
	})
	if errors.Is(err, errStale) {
		return false, nil
	}
	return err == nil, err
}
