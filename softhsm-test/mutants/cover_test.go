package mutants

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// profile is the coverage of one package of tests: blocks by file, as `go test -coverprofile` writes them.
type profile map[string][]block

// block is a part of a file that runs as a whole.
type block struct {
	from, to position
	runs     bool
}

type position struct{ line, column int }

func (p position) before(q position) bool {
	return p.line < q.line || p.line == q.line && p.column < q.column
}

func readProfile(path string) (profile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	p := profile{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ".go:")
		if !ok {
			continue // the mode
		}
		var b block
		var statements, count int
		if _, err := fmt.Sscanf(rest, "%d.%d,%d.%d %d %d",
			&b.from.line, &b.from.column, &b.to.line, &b.to.column, &statements, &count); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, lines.Text(), err)
		}
		b.runs = count > 0
		name = strings.TrimPrefix(name, module) + ".go"
		p[name] = append(p[name], b)
	}
	return p, nil
}

// runs reports whether the tests run the place of a change. A place between two blocks, such as the
// condition of a case, runs if a part of its function does.
func (p profile) runs(r replacement) bool {
	f := r.function
	at := func(offset int) position {
		pos := f.fset.Position(f.fset.File(f.decl.Pos()).Pos(offset))
		return position{pos.Line, pos.Column}
	}
	whole := f.span(f.decl)
	place, from, to := at(r.from), at(whole.from), at(whole.to)
	some := false
	for _, b := range p[f.pkg+f.file[strings.LastIndex(f.file, "/"):]] {
		if !place.before(b.from) && place.before(b.to) {
			return b.runs
		}
		some = some || b.runs && !b.from.before(from) && b.to.before(to)
	}
	return some
}
