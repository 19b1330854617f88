package fault

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// uses collects how the programs use the table.
type uses struct {
	files  *token.FileSet
	rows   map[string][]string // the placeholders of each row, by the name of its variable
	filled map[string][]string // the names that each place of With fills in, by position and row
	used   map[string]bool
}

var braces = regexp.MustCompile(`\{(\w+)\}`)

// TestUses: programs use every row, and fill in all its placeholders.
func TestUses(t *testing.T) {
	u := uses{files: token.NewFileSet(), rows: map[string][]string{}, filled: map[string][]string{}, used: map[string]bool{}}
	var programs []*ast.File
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(u.files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if file.Name.Name == "fault" {
			u.declare(file)
		} else {
			programs = append(programs, file)
		}
		return nil
	})
	for _, file := range programs {
		ast.Inspect(file, u.inspect)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(u.rows) < 60 {
		t.Fatalf("found %d rows only", len(u.rows))
	}
	for name, want := range u.rows {
		if !u.used[name] {
			t.Errorf("no program uses %s", name)
		}
		for at, got := range u.filled {
			if strings.HasPrefix(at, name+" ") && !slices.Equal(got, want) {
				t.Errorf("%s fills in %v, want %v", at, got, want)
			}
		}
	}
}

// declare notes the rows of a file of the table, and their placeholders in order.
func (u uses) declare(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		call, ok := spec.Values[0].(*ast.CallExpr)
		if !ok || !isSelector(call.Fun, "row") {
			return true
		}
		var names []string
		ast.Inspect(call, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				for _, found := range braces.FindAllStringSubmatch(lit.Value, -1) {
					if found[0] != placeholder {
						names = append(names, found[1])
					}
				}
			}
			return true
		})
		slices.Sort(names)
		u.rows[spec.Names[0].Name] = slices.Compact(names)
		return true
	})
}

func isSelector(e ast.Expr, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	return ok && s.Sel.Name == name
}

// inspect notes the uses of rows in a program.
func (u uses) inspect(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		row, ok := n.Fun.(*ast.SelectorExpr)
		if !ok || row.Sel.Name != "With" {
			return true
		}
		if name := rowName(row.X); name != "" {
			u.used[name] = true
			at := u.at(name, n)
			for i := 0; i < len(n.Args); i += 2 {
				if lit, ok := n.Args[i].(*ast.BasicLit); ok {
					u.filled[at] = append(u.filled[at], strings.Trim(lit.Value, `"`))
				}
			}
			slices.Sort(u.filled[at])
			for _, arg := range n.Args {
				ast.Inspect(arg, u.inspect)
			}
			return false
		}
	case *ast.SelectorExpr:
		if name := rowName(n); name != "" {
			u.used[name] = true
			if len(u.rows[name]) > 0 {
				u.filled[u.at(name, n)] = nil
			}
		}
	}
	return true
}

// at names a use of a row with its place.
func (u uses) at(name string, n ast.Node) string {
	return name + " in " + u.files.Position(n.Pos()).String()
}

// rowName returns the name of a row of the table that an expression is, or "".
func rowName(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if x, ok := s.X.(*ast.Ident); ok && x.Name == "fault" {
		return s.Sel.Name
	}
	return ""
}
