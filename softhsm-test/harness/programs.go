// Package harness runs tests with the real programs and a real PKCS#11 token. It finds or
// builds the programs, starts and stops them, waits for conditions, reads the traces that
// they leave (exit codes, hook logs, counts of the store, audit records), and counts the
// checks of a [Suite].
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Programs are the names of the programs that `make build` puts into bin/.
var Programs = []string{"countersignd", "hsm-worker", "hsm-probe", "countersignctl", "relayd", "countersign-client"}

// Bin is the absolute path of a directory that contains the programs.
type Bin string

// Find returns the directory if it contains every program.
func Find(dir string) (Bin, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for _, p := range Programs {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return "", fmt.Errorf("looking for the programs: %w", err)
		}
	}
	return Bin(dir), nil
}

// Built returns the directory that COUNTERSIGN_BIN names. Without that variable it returns
// bin/ in the root of the repository if no program there is older than a source file, else a
// temporary directory into which it builds the programs; [Main] removes it.
var Built = sync.OnceValues(func() (Bin, error) {
	if named := os.Getenv("COUNTERSIGN_BIN"); named != "" {
		return Find(named)
	}
	root, err := Root()
	if err != nil {
		return Find("bin")
	}
	if bin, err := Find(filepath.Join(root, "bin")); err == nil {
		if fresh, err := bin.isFresh(root); fresh || err != nil {
			return bin, err
		}
	}
	if temporary, err = os.MkdirTemp("", "countersign-bin-"); err != nil {
		return "", err
	}
	args := []string{"build", "-o", temporary + "/"}
	for _, p := range Programs {
		args = append(args, "countersign/cmd/"+p)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs: %w: %s", err, out)
	}
	return Find(temporary)
})

// temporary is the directory that Built made, "" if it made none.
var temporary string

// Root returns the root of the repository, found upward from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("no go.mod here or above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// isFresh reports whether every program is newer than every source file of the product.
func (b Bin) isFresh(root string) (bool, error) {
	oldest := time.Now()
	for _, p := range Programs {
		info, err := os.Stat(b.Path(p))
		if err != nil {
			return false, err
		}
		if info.ModTime().Before(oldest) {
			oldest = info.ModTime()
		}
	}
	errStale := errors.New("stale")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
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

// Path returns the path of a program.
func (b Bin) Path(program string) string { return filepath.Join(string(b), program) }

// Call is a program with its arguments and environment.
type Call struct {
	Program string // its name in the [Bin]
	Args    []string
	Dir     string   // working directory; "" is the caller's
	Env     []string // NAME=VALUE, in addition to the caller's environment
	Stdin   string
	Stderr  *os.File // of a daemon, in place of its log; nil: none
}

// Result is the output and exit code of a program that ended.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 if a signal ended it
}

// Run runs a program and waits for its end. An exit code other than 0 is not an error.
func (b Bin) Run(ctx context.Context, c Call) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.Path(c.Program), c.Args...)
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.Stdin), &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		return r, fmt.Errorf("running %s %s: %w", c.Program, strings.Join(c.Args, " "), err)
	}
	return r, nil
}

// waitLimit bounds every wait of this package.
const waitLimit = 20 * time.Second

// poll is the interval at which a condition is checked.
const poll = 5 * time.Millisecond

// Until waits until a condition holds, at most 20 seconds. An error of the condition ends the
// wait. The error after 20 seconds begins with "waiting for" and what.
func Until(ctx context.Context, what string, condition func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		ok, err := condition()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
}
