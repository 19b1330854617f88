package mutants

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// sample has one place for each kind of candidate, and what no candidate may change.
const sample = `package p

func (s *service) decide(n int, ok bool) (level int, err error) {
	if err := s.check(n); err != nil {
		return 0, err
	}
	row, err := s.read()
	if err != nil {
		return 0, err
	}
	if n > 9 {
		s.log.Info("decided", "n", n)
	}
	s.count++
	defer s.close()
	switch {
	case ok && n > 3:
		return row.level, nil
	case n == 2:
		s.note(n)
	}
	return 0, ErrRefused
}
`

// TestCandidates: the candidates of a function are those that decide, and each reads as one line.
func TestCandidates(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "sample.go", sample, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	f := &function{symbol: "p.service.decide", text: []byte(sample), fset: fset, decl: file.Decls[0].(*ast.FuncDecl)}
	var got []string
	for _, c := range f.candidates() {
		got = append(got, c.text())
	}
	want := []string{
		"negated condition: err != nil => !(err != nil)",
		"dropped statement: if err := s.check(n); err != nil { return 0, err } =>",
		"dropped statement: s.count++ =>",
		"negated condition: ok && n > 3 => !(ok && n > 3)",
		"negated condition: n == 2 => !(n == 2)",
		"swapped and/or: ok && n > 3 => ((ok) || (n > 3))",
		"boundary: n > 3 => n >= 3",
		"zero return: return row.level, nil => return *new(int), *new(error)",
		"dropped statement: s.note(n) =>",
		"zero return: return 0, ErrRefused => return *new(int), *new(error)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("candidates are\n%q\nwant\n%q", got, want)
	}
}

// TestOrder: a seed gives the same order again, and another seed another one.
func TestOrder(t *testing.T) {
	tree, err := readTree()
	if err != nil {
		t.Fatal(err)
	}
	functions, _ := tree.deciding()
	first := func(seed uint64) (texts []string) {
		all := candidates(functions)
		order(all, seed)
		for _, c := range all[:40] {
			texts = append(texts, c.function.symbol+" "+c.text())
		}
		return texts
	}
	if !slices.Equal(first(7), first(7)) {
		t.Error("one seed gives two orders")
	}
	if slices.Equal(first(7), first(8)) {
		t.Error("two seeds give one order")
	}
}
