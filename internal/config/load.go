// Package config reads the daemons' configuration files into structs, strictly:
// a key that is unknown, misspelt or of the wrong type stops the program before
// it starts, and every problem of a file is reported at once, with its line.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"countersign/internal/fault"
	"countersign/internal/tomldoc"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	Line int    // of the file, from 1; 0 if it belongs to no line
	Key  string // "hsm.workers"; "" if it belongs to no key
	Text string

	entry int // which one of an array of tables, from 1; 0 if Key is in none
}

// Error is everything wrong with one configuration, in the order of lines.
type Error struct {
	Path     string // of the file; "" for a configuration made in memory
	Problems []Problem

	cause error
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		at := ""
		switch {
		case e.Path != "" && p.Line > 0:
			at = fmt.Sprintf("%s:%d: ", e.Path, p.Line)
		case e.Path != "":
			at = e.Path + ": "
		}
		if p.Key != "" {
			at += p.Key + ": "
		}
		lines[i] = at + p.Text
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns why the file could not be read, if that is the problem.
func (e *Error) Unwrap() error { return e.cause }

// ExitCode returns 78.
func (e *Error) ExitCode() int { return int(e.row().Exit) }

// Hint returns advice for the user.
func (e *Error) Hint() string { return e.row().Advice }

func (e *Error) row() fault.Row {
	if e.cause != nil {
		return fault.ConfigUnread
	}
	return fault.ConfigWrong
}

// document is a configuration file during loading.
type document interface {
	// resolve makes paths absolute and fills in those left to state_dir.
	resolve(dir string)
	// check returns everything that is wrong.
	check() []Problem
}

// namer is a document in which one key can replace several others.
type namer interface {
	// name fills in the others if the file does not define them.
	name(defined func(key ...string) bool) []Problem
}

// load decodes a file over the defaults that into holds. Errors are [*Error].
func load(path string, into document) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		var pathErr *os.PathError
		text := err.Error()
		if errors.As(err, &pathErr) {
			text = pathErr.Err.Error() // the path is said already
		}
		return &Error{Path: path, Problems: []Problem{{Text: "reading configuration: " + text}}, cause: err}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return &Error{Path: path, Problems: []Problem{{Text: err.Error()}}, cause: err}
	}
	problems := decode(string(raw), into, dir)
	if len(problems) == 0 {
		return nil
	}
	return &Error{Path: path, Problems: problems}
}

// decode fills a document in from its text. It returns everything that is wrong, in the order
// of lines, or only the error that stopped the decoder.
func decode(text string, into document, dir string) []Problem {
	md, err := toml.Decode(text, into)
	if err != nil {
		return []Problem{decodeProblem(err)}
	}
	problems := unknownKeys(text, md, into)
	if n, ok := into.(namer); ok {
		problems = append(problems, n.name(md.IsDefined)...)
	}
	if undecoded := md.Undecoded(); len(problems) == 0 && len(undecoded) > 0 {
		problems = append(problems, Problem{Text: "unknown key " + undecoded[0].String()})
	}
	into.resolve(dir)
	problems = append(problems, into.check()...)
	if len(problems) > 0 {
		place(tomldoc.Locate(text, md), problems)
	}
	return problems
}

// decodeProblem turns the decoder's error into a problem with key and line.
func decodeProblem(err error) Problem {
	line, key, text := tomldoc.Explain(err)
	return Problem{Line: line, Key: key, Text: text}
}

// place gives problems the lines of their keys and sorts them.
func place(keys []tomldoc.Key, problems []Problem) {
	for i := range problems {
		if p := &problems[i]; p.Line == 0 && p.Key != "" {
			p.Line = lineOf(keys, *p)
		}
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
}

// lineOf returns the line of a key, or of the innermost table around it that
// the file has.
func lineOf(keys []tomldoc.Key, p Problem) int {
	entry, line, depth := 0, 0, 0
	table, _, _ := strings.Cut(p.Key, ".")
	for _, k := range keys {
		name := k.Path.String()
		if name == table {
			entry++
		}
		inside := p.entry == 0 || p.entry == entry
		around := name == p.Key || strings.HasPrefix(p.Key, name+".")
		if inside && around && len(name) >= depth {
			line, depth = k.Line, len(name)
		}
	}
	return line
}
