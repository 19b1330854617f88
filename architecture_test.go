package countersign

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "countersign/"

// pkg is what `go list -json` says about a package.
type pkg struct {
	ImportPath        string
	Imports, CgoFiles []string
}

// TestArchitecture compares the imports of every package, tests left out, with the table of
// ARCHITECTURE.md. A package belongs to the row with the longest name that is its path or
// a parent of it. It may import its own row's packages and the rows that the second column names.
func TestArchitecture(t *testing.T) {
	rows := readTable(t)
	packages := listPackages(t)
	used := make(map[string]bool)
	for _, p := range packages {
		path := strings.TrimPrefix(p.ImportPath, module)
		row := rowOf(rows, path)
		if row == "" {
			t.Errorf("%s is in no row of ARCHITECTURE.md", path)
			continue
		}
		used[row] = true
		for _, imported := range p.Imports {
			other, ours := strings.CutPrefix(imported, module)
			if !ours || slices.Contains(rows[row], "anything") {
				continue
			}
			if to := rowOf(rows, other); to != row && !slices.Contains(rows[row], to) {
				t.Errorf("%s imports %s: the row %s of ARCHITECTURE.md does not name %s", path, other, row, to)
			}
			used[row+" imports "+rowOf(rows, other)] = true
		}
	}
	for row, imports := range rows {
		if !used[row] {
			t.Errorf("ARCHITECTURE.md has a row %s, but no such package exists", row)
		}
		for _, to := range imports {
			if to != "anything" && !used[row+" imports "+to] {
				t.Errorf("ARCHITECTURE.md: %s imports nothing of %s", row, to)
			}
		}
	}
}

// TestCgo keeps cgo in the packages that talk to PKCS#11 modules.
func TestCgo(t *testing.T) {
	for _, p := range listPackages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		allowed := path == "hsm/pkcs11" || strings.HasPrefix(path, "cmd/hsm-probe")
		if len(p.CgoFiles) > 0 && !allowed {
			t.Errorf("%s uses cgo (%s)", path, strings.Join(p.CgoFiles, ", "))
		}
	}
}

var quoted = regexp.MustCompile("`([^`]+)`")

// readTable returns the table that begins with "| room |": for each name in the first column,
// the rows that the second column names. A name without a path is in the row's own directory.
func readTable(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| room |")
	if !found {
		t.Fatal("ARCHITECTURE.md has no table that begins with | room |")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	named := make(map[string]string) // the second column by row
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			t.Fatalf("ARCHITECTURE.md: a row without columns: %s", line)
		}
		for _, name := range quoted.FindAllStringSubmatch(cells[1], -1) {
			named[name[1]] = cells[2]
		}
	}
	rows := make(map[string][]string)
	for row, names := range named {
		rows[row] = nil
		for _, name := range strings.Split(names, ",") {
			name = strings.TrimSpace(name)
			top, _, _ := strings.Cut(row, "/")
			if _, known := named[top+"/"+name]; known {
				name = top + "/" + name
			} else if _, known := named[name]; !known && name != "anything" && name != "–" {
				t.Errorf("ARCHITECTURE.md: %s may import %q, which is no row", row, name)
			}
			if name != "–" {
				rows[row] = append(rows[row], name)
			}
		}
	}
	return rows
}

// rowOf returns the row of a package, or "".
func rowOf(rows map[string][]string, path string) string {
	best := ""
	for row := range rows {
		if (path == row || strings.HasPrefix(path, row+"/")) && len(row) > len(best) {
			best = row
		}
	}
	return best
}

func listPackages(t *testing.T) (packages []pkg) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,CgoFiles", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatal(err)
		case p.ImportPath+"/" != module:
			packages = append(packages, p)
		}
	}
}
