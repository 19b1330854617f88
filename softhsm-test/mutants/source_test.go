package mutants

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"countersign/softhsm-test/harness"
)

// tree is the source of the product, without its tests.
type tree struct {
	root      string
	functions map[string]*function // by symbol
}

// function is one function of the product. Its symbol is the path of its package and its name,
// with the type of its receiver: appliance/store.Spend.objection.
type function struct {
	symbol string
	pkg    string // path of the package, without the module
	file   string // absolute
	text   []byte // of the file
	fset   *token.FileSet
	decl   *ast.FuncDecl
}

// skipped are directories without source of the product.
var skipped = []string{"softhsm-test", "bin", "testdata", "docs"}

func readTree() (*tree, error) {
	root, err := harness.Root()
	if err != nil {
		return nil, err
	}
	t := &tree{root: root, functions: map[string]*function{}}
	return t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains(skipped, name) || strings.HasPrefix(name, ".")):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		return t.read(path)
	})
}

func (t *tree) read(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	pkg, err := filepath.Rel(t.root, filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, d := range file.Decls {
		decl, ok := d.(*ast.FuncDecl)
		if !ok || decl.Body == nil {
			continue
		}
		f := &function{pkg: filepath.ToSlash(pkg), file: path, text: text, fset: fset, decl: decl}
		f.symbol = f.pkg + "." + receiverOf(decl) + decl.Name.Name
		t.functions[f.symbol] = f
	}
	return nil
}

// receiverOf returns the name of the receiver's type with a dot, or "".
func receiverOf(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	name := ""
	ast.Inspect(d.Recv.List[0].Type, func(n ast.Node) bool {
		if ident, ok := n.(*ast.Ident); ok && name == "" {
			name = ident.Name
		}
		return name == ""
	})
	return name + "."
}

// span is a part of a file, in bytes.
type span struct{ from, to int }

func (f *function) span(n ast.Node) span { return f.between(n.Pos(), n.End()) }

func (f *function) between(from, to token.Pos) span {
	return span{f.fset.Position(from).Offset, f.fset.Position(to).Offset}
}

// at returns the text of a part of the function's file.
func (f *function) at(s span) string { return string(f.text[s.from:s.to]) }

// edit replaces a text that occurs once in a function.
type edit struct{ symbol, old, to string }

// replacement is new text for a part of a function's file.
type replacement struct {
	function *function
	span
	to string
}

// changed is a mutant as the compiler sees it.
type changed struct {
	symbol       string // of the function, or of the first of several
	text         string // of the change, as equivalent.txt lists it
	replacements []replacement
}

// change finds the places of edits.
func (t *tree) change(edits []edit) (c changed, err error) {
	var texts []string
	for _, e := range edits {
		f := t.functions[e.symbol]
		if f == nil {
			return c, fmt.Errorf("no function is called %s: mend the table in known_test.go", e.symbol)
		}
		whole := f.span(f.decl)
		body := f.at(whole)
		if n := strings.Count(body, e.old); n != 1 {
			return c, fmt.Errorf("%s has %q %d times, want once: mend the table in known_test.go", e.symbol, e.old, n)
		}
		from := whole.from + strings.Index(body, e.old)
		c.replacements = append(c.replacements, replacement{f, span{from, from + len(e.old)}, e.to})
		texts = append(texts, describe("", e.old, e.to))
	}
	c.symbol, c.text = edits[0].symbol, strings.Join(texts, "; ")
	return c, nil
}

// describe returns a change on one line.
func describe(kind, old, to string) string {
	line := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	return strings.TrimSpace(line(kind) + " " + line(old) + " => " + line(to))
}

// files returns the changed files of a mutant, by path.
func (c changed) files() map[string][]byte {
	byFile := map[string][]replacement{}
	for _, r := range c.replacements {
		byFile[r.function.file] = append(byFile[r.function.file], r)
	}
	files := map[string][]byte{}
	for path, all := range byFile {
		slices.SortFunc(all, func(a, b replacement) int { return cmp.Compare(b.from, a.from) })
		text := slices.Clone(all[0].function.text)
		for _, r := range all {
			text = slices.Concat(text[:r.from], []byte(r.to), text[r.span.to:])
		}
		files[path] = text
	}
	return files
}

// packages returns the paths of the packages that a mutant changes.
func (c changed) packages() (all []string) {
	for _, r := range c.replacements {
		if !slices.Contains(all, r.function.pkg) {
			all = append(all, r.function.pkg)
		}
	}
	return all
}
