package mutants

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"countersign/softhsm-test/harness"
)

const module = "countersign/"

// tests are the tests of the product.
type tests struct {
	root, dir string
	packages  []*testPackage
	runs      atomic.Int64
}

// testPackage is one package of tests.
type testPackage struct {
	path    string                      // without the module
	reaches map[string]bool             // packages that the tests are built from
	base    func() (measurement, error) // runs the tests without a mutant, once
}

// measurement is what a run without a mutant showed.
type measurement struct {
	took    time.Duration
	covered profile
}

// memory bounds the address space of a mutant, which may allocate without end.
const memory = 16 << 30

// newTests lists the tests of the product, without this directory and those of the root.
func newTests(ctx context.Context, root, dir string) (*tests, error) {
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: memory, Max: memory}); err != nil {
		return nil, fmt.Errorf("bounding the memory of mutants: %w", err)
	}
	t := &tests{root: root, dir: dir}
	cmd := t.command(ctx, "list", "-json=ImportPath,Deps,TestImports,XTestImports,TestGoFiles,XTestGoFiles", "./...")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	type listed struct {
		ImportPath                                                 string
		Deps, TestImports, XTestImports, TestGoFiles, XTestGoFiles []string
	}
	all := map[string]listed{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); decoder.More(); {
		var one listed
		if err := decoder.Decode(&one); err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		all[one.ImportPath] = one
	}
	measured := decidingPackages()
	for name, one := range all {
		path, ours := strings.CutPrefix(name, module)
		if !ours || len(one.TestGoFiles)+len(one.XTestGoFiles) == 0 || strings.HasPrefix(path, "softhsm-test") {
			continue
		}
		p := &testPackage{path: path, reaches: map[string]bool{path: true}}
		for _, imported := range slices.Concat([]string{name}, one.TestImports, one.XTestImports) {
			for _, dep := range append(all[imported].Deps, imported) {
				p.reaches[strings.TrimPrefix(dep, module)] = true
			}
		}
		var reached []string
		for _, name := range measured {
			if p.reaches[name] {
				reached = append(reached, module+name)
			}
		}
		p.base = sync.OnceValues(func() (measurement, error) { return t.measure(ctx, path, reached) })
		t.packages = append(t.packages, p)
	}
	return t, nil
}

// command returns a run of go in the root of the product, which ends with all that it started.
func (t *tests) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = t.root
	cmd.Env = append(os.Environ(), "BREAK=", "MUTANTS_SEED=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// measure runs tests without a mutant. They have to pass: a test that fails anyway notices nothing. One
// that fails once under load gets a second chance.
func (t *tests) measure(ctx context.Context, path string, reached []string) (m measurement, err error) {
	out := filepath.Join(t.dir, fmt.Sprintf("base-%d", t.runs.Add(1)))
	args := []string{"test", "-count=1", "-short", "-vet=off", "-p=1", "-coverprofile=" + out}
	if len(reached) > 0 {
		args = append(args, "-coverpkg="+strings.Join(reached, ","))
	}
	var text []byte
	for range 2 {
		start := time.Now()
		text, err = t.command(ctx, append(args, "./"+path)...).CombinedOutput()
		if m.took = time.Since(start); err == nil {
			break
		}
	}
	if err != nil {
		return m, fmt.Errorf("the tests of %s fail without a mutant: %w\n%s", path, err, text)
	}
	if i := resultTook.FindSubmatch(text); i != nil { // without the build
		m.took = harness.Must(time.ParseDuration(string(i[1])))
	}
	m.covered, err = readProfile(out)
	return m, err
}

var resultTook = regexp.MustCompile(`(?m)^ok\s+\S+\s+(\S+s)\b`)

// result is what the tests said about a mutant.
type result struct {
	unbuilt  bool // it does not compile
	killedBy string
	packages int // of tests that ran
	took     time.Duration
	output   []byte
	err      error
}

// run builds a mutant and runs the tests that may notice it until one does: those of its package, then
// those that run the changed place, the fastest first.
func (t *tests) run(ctx context.Context, c changed) (r result) {
	start := time.Now()
	defer func() { r.took = time.Since(start) }()
	overlay, err := t.overlay(c)
	if err != nil {
		return result{err: err}
	}
	if harness.Break() == breakBlind {
		return t.build(ctx, overlay, c)
	}
	for _, stage := range []func(changed) ([]*testPackage, error){t.own, t.others} {
		packages, err := stage(c)
		if err != nil {
			return result{err: err}
		}
		for _, p := range packages {
			r.packages++
			if one := t.try(ctx, overlay, p); one.err != nil || one.unbuilt || one.killedBy != "" {
				one.packages = r.packages
				return one
			}
		}
	}
	if r.packages == 0 {
		return t.build(ctx, overlay, c)
	}
	return r
}

// own returns the tests of the changed packages, which passed without the mutant.
func (t *tests) own(c changed) (own []*testPackage, err error) {
	for _, p := range t.packages {
		if slices.Contains(c.packages(), p.path) {
			if _, err := p.base(); err != nil {
				return nil, err
			}
			own = append(own, p)
		}
	}
	return own, nil
}

// others returns the tests of other packages that run the changed place, the fastest first. The tests of
// a program run it as a process of its own, which is not measured.
func (t *tests) others(c changed) ([]*testPackage, error) {
	took := map[*testPackage]time.Duration{}
	var all []*testPackage
	for _, p := range t.packages {
		if slices.Contains(c.packages(), p.path) || !slices.ContainsFunc(c.packages(), func(name string) bool { return p.reaches[name] }) {
			continue
		}
		m, err := p.base()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(p.path, "cmd/") || slices.ContainsFunc(c.replacements, m.covered.runs) {
			took[p] = m.took
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b *testPackage) int { return cmp.Compare(took[a], took[b]) })
	return all, nil
}

// overlay writes the changed files and the list of them that the compiler reads.
func (t *tests) overlay(c changed) (string, error) {
	dir := filepath.Join(t.dir, fmt.Sprintf("mutant-%d", t.runs.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	replace := map[string]string{}
	for path, text := range c.files() {
		replace[path] = filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(replace[path], text, 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}

// build reports whether a mutant that no test runs compiles.
func (t *tests) build(ctx context.Context, overlay string, c changed) result {
	args := []string{"build", "-overlay=" + overlay}
	for _, p := range c.packages() {
		args = append(args, "./"+p)
	}
	out, err := t.command(ctx, args...).CombinedOutput()
	return result{unbuilt: err != nil, output: out}
}

// limitOf returns how long the tests may run on a mutant. One that hangs is noticed.
func limitOf(m measurement) time.Duration { return 20*time.Second + 5*m.took }

// building is how long a build may take beside the tests.
const building = 5 * time.Minute

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// try runs one package of tests on a mutant.
func (t *tests) try(ctx context.Context, overlay string, p *testPackage) (r result) {
	m, err := p.base()
	if err != nil {
		return result{err: err}
	}
	limit := limitOf(m)
	ctx, cancel := context.WithTimeout(ctx, limit+building)
	defer cancel()
	out, err := t.command(ctx, "test", "-overlay="+overlay, "-count=1", "-short", "-vet=off", "-failfast", "-p=1",
		"-timeout="+limit.String(), "./"+p.path).CombinedOutput()
	r.output = out
	switch {
	case err == nil:
	case bytes.Contains(out, []byte("[build failed]")):
		r.unbuilt = true
	case bytes.Contains(out, []byte("panic: test timed out")), ctx.Err() != nil:
		r.killedBy = p.path + ", which does not end"
	default:
		r.killedBy = p.path
		if names := failed.FindAllSubmatch(out, -1); names != nil {
			r.killedBy += " " + string(slices.MaxFunc(names, func(a, b [][]byte) int { return strings.Count(string(a[1]), "/") - strings.Count(string(b[1]), "/") })[1])
		} else if bytes.Contains(out, []byte("panic: ")) {
			r.killedBy += ", which panics"
		}
	}
	return r
}
