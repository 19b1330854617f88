// Package tomldoc finds the lines of keys and errors in TOML documents.
package tomldoc

import (
	"errors"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// Key is one occurrence of a key in a document.
type Key struct {
	Path toml.Key
	Line int // from 1; 0 if it is unknown
}

// Keys returns the keys of a document that was decoded, in its order and without lines.
func Keys(md toml.MetaData) []Key {
	keys := make([]Key, len(md.Keys()))
	for i, path := range md.Keys() {
		keys[i].Path = path
	}
	return keys
}

// Locate returns every key of a document that was decoded, in its order. If it cannot find
// all lines, it returns the keys without lines. The TOML library does not export the
// positions of keys, so Locate cuts the document into the shortest runs of lines that parse
// by themselves.
func Locate(doc string, md toml.MetaData) []Key {
	var found []Key
	var table toml.Key
	lines := strings.SplitAfter(doc, "\n")
	for start := 0; start < len(lines); {
		count, paths := statement(lines[start:])
		header := strings.HasPrefix(strings.TrimSpace(lines[start]), "[")
		if header {
			table = nil
		}
		at := start
		for _, path := range paths {
			at = seek(lines[:start+count], at, path[len(path)-1])
			found = append(found, Key{Path: append(table[:len(table):len(table)], path...), Line: at + 1})
		}
		if header && len(paths) > 0 {
			table = paths[len(paths)-1]
		}
		start += count
	}
	if len(found) != len(md.Keys()) {
		return Keys(md)
	}
	return found
}

// maxStatement bounds the search for the end of a statement, in lines.
const maxStatement = 400

// statement returns the number of lines of the first statement, and its keys. If the
// statement has no end within maxStatement lines, it returns all lines and no keys.
func statement(lines []string) (int, []toml.Key) {
	for count := 1; count <= min(len(lines), maxStatement); count++ {
		var ignored map[string]any
		if md, err := toml.Decode(strings.Join(lines[:count], ""), &ignored); err == nil {
			return count, md.Keys()
		}
	}
	return len(lines), nil
}

// seek returns the line of a key within a statement of several lines. For a key that is
// written with escapes, it returns the line of the key before it.
func seek(lines []string, from int, name string) int {
	for i := from; i < len(lines); i++ {
		if strings.Contains(lines[i], name) {
			return i
		}
	}
	return from
}

var decodePrefix = regexp.MustCompile(`^toml: line (\d+) \(last key "(.*?)"\): `)

// Explain splits an error of toml.Decode into its line, its key and its text. The line is 0
// and the key is empty if the error does not have them.
func Explain(err error) (line int, key, text string) {
	var syntax toml.ParseError
	if errors.As(err, &syntax) {
		return syntax.Position.Line, syntax.LastKey, syntax.Message
	}
	text = err.Error()
	if m := decodePrefix.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits, by the expression above
		return line, m[2], text[len(m[0]):]
	}
	return 0, "", strings.TrimPrefix(text, "toml: ")
}

// Fields returns the key of every field with a toml tag in a struct type, in order and with
// the keys of nested structs and slices of structs: "hsm", "hsm.workers".
func Fields(t reflect.Type) []string { return appendFields(nil, t, "") }

func appendFields(keys []string, t reflect.Type, prefix string) []string {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return keys
	}
	for field := range t.Fields() {
		tag, ok := field.Tag.Lookup("toml")
		if !ok {
			continue // a field of a value type
		}
		keys = append(keys, prefix+tag)
		keys = appendFields(keys, field.Type, prefix+tag+".")
	}
	return keys
}
