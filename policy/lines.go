package policy

import (
	"strings"

	"github.com/BurntSushi/toml"
)

// located is one occurrence of a key in a document.
type located struct {
	key  toml.Key
	line int // from 1
}

// locate lists every key of a document that has parsed, in its order. The TOML
// decoder knows where its keys are and does not tell, so the document is cut
// into statements here: the shortest runs of lines that parse by themselves.
func locate(doc string) []located {
	var found []located
	var table toml.Key
	lines := strings.SplitAfter(doc, "\n")
	for start := 0; start < len(lines); {
		count, keys := statement(lines[start:])
		header := strings.HasPrefix(strings.TrimSpace(lines[start]), "[")
		if header {
			table = nil
		}
		at := start
		for _, key := range keys {
			at = seek(lines[:start+count], at, key[len(key)-1])
			found = append(found, located{key: append(table[:len(table):len(table)], key...), line: at + 1})
		}
		if header && len(keys) > 0 {
			table = keys[len(keys)-1]
		}
		start += count
	}
	return found
}

// maxStatement bounds the search for the end of a statement, in lines.
const maxStatement = 400

// statement returns how many lines the first statement takes and its keys. What
// has no end within maxStatement lines is taken as a whole, without keys.
func statement(lines []string) (int, []toml.Key) {
	for count := 1; count <= min(len(lines), maxStatement); count++ {
		var ignored map[string]any
		if md, err := toml.Decode(strings.Join(lines[:count], ""), &ignored); err == nil {
			return count, md.Keys()
		}
	}
	return len(lines), nil
}

// seek finds the line of a key within a statement of several lines. A key that
// is written with escapes is reported where the one before it stands.
func seek(lines []string, from int, name string) int {
	for i := from; i < len(lines); i++ {
		if strings.Contains(lines[i], name) {
			return i
		}
	}
	return from
}
