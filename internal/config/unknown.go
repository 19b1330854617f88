package config

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/BurntSushi/toml"

	"countersign/hsm/uri"

	"countersign/internal/tomldoc"
)

// unknownKeys names every key that the structs do not have. It compares
// exactly: the decoder itself would take Pin for pin, and choose at random if
// both are there.
func unknownKeys(doc string, md toml.MetaData, into document) []Problem {
	known := Keys(into)
	isUnknown := func(k tomldoc.Key) bool { return !slices.Contains(known, k.Path.String()) }
	if !slices.ContainsFunc(tomldoc.Keys(md), isUnknown) {
		return nil
	}
	var problems []Problem
	reported := make(map[string]bool)
	for _, k := range tomldoc.Locate(doc, md) {
		if !isUnknown(k) || reported[k.Path[:len(k.Path)-1].String()] {
			continue // known, or in a table that is unknown itself
		}
		reported[k.Path.String()] = true
		text := fmt.Sprintf("unknown key %s", k.Path)
		if near := uri.Nearest(k.Path.String(), known); near != "" {
			text += fmt.Sprintf(" (did you mean %s?)", near)
		}
		problems = append(problems, Problem{Line: k.Line, Text: text})
	}
	return problems
}

// Keys returns every key that a configuration has, such as "hsm.workers", in the order of
// its fields. The argument is a struct or a pointer to one.
func Keys(configuration any) []string { return tomldoc.Fields(reflect.TypeOf(configuration)) }
