package mutants

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

// equivalentTxt lists mutants that change nothing that a caller could see. Entries are separated by
// an empty line. The first line of an entry is the function, the second the change, as a run prints
// them; the others are the reason. Lines that begin with # are comments.
//
//go:embed equivalent.txt
var equivalentTxt string

// equivalent is an entry of equivalent.txt.
type equivalent struct{ symbol, text, reason string }

// String returns the lines that name the mutant.
func (e equivalent) String() string { return e.symbol + "\n" + e.text }

func readEquivalents() (all []equivalent, err error) {
	for entry := range strings.SplitSeq(equivalentTxt, "\n\n") {
		var lines []string
		for line := range strings.Lines(entry) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		switch {
		case len(lines) == 0:
			continue
		case len(lines) < 3:
			return nil, fmt.Errorf("equivalent.txt: %q needs a function, a change and a reason", lines[0])
		}
		all = append(all, equivalent{lines[0], lines[1], strings.Join(lines[2:], " ")})
	}
	return all, nil
}

// reasonOf finds the entry of a mutant.
func reasonOf(all []equivalent, e equivalent) (reason string, listed bool) {
	i := slices.IndexFunc(all, func(one equivalent) bool { return one.symbol == e.symbol && one.text == e.text })
	if i < 0 {
		return "", false
	}
	return all[i].reason, true
}

// has reports whether the mutant of an entry can still be made.
func (t *tree) has(e equivalent) bool {
	for _, m := range known {
		if c, err := t.change(m.edits); err == nil && c.symbol == e.symbol && c.text == e.text {
			return true
		}
	}
	f := t.functions[e.symbol]
	return f != nil && slices.ContainsFunc(f.candidates(), func(c candidate) bool { return c.text() == e.text })
}
