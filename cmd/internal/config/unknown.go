package config

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/BurntSushi/toml"

	"countersign/hsm/uri"
)

// unknownKeys names every key that the structs do not have. It compares
// exactly: the decoder itself would take Pin for pin, and choose at random if
// both are there.
func unknownKeys(doc string, md toml.MetaData, into document) []Problem {
	known := Keys(into)
	isUnknown := func(k toml.Key) bool { return !slices.Contains(known, k.String()) }
	if !slices.ContainsFunc(md.Keys(), isUnknown) {
		return nil
	}
	keys := locate(doc)
	if len(keys) != len(md.Keys()) { // a statement too long to be located
		keys = nil
		for _, k := range md.Keys() {
			keys = append(keys, located{key: k})
		}
	}
	var problems []Problem
	reported := make(map[string]bool)
	for _, k := range keys {
		if !isUnknown(k.key) || reported[k.key[:len(k.key)-1].String()] {
			continue // known, or in a table that is unknown itself
		}
		reported[k.key.String()] = true
		text := fmt.Sprintf("unknown key %s", k.key)
		if near := uri.Nearest(k.key.String(), known); near != "" {
			text += fmt.Sprintf(" (did you mean %s?)", near)
		}
		problems = append(problems, Problem{Line: k.line, Text: text})
	}
	return problems
}

// Keys lists every key that a configuration has, "hsm.workers", in the order of
// its fields. The argument is a struct or a pointer to one.
func Keys(configuration any) []string {
	t := reflect.TypeOf(configuration)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return appendKeys(nil, t, "")
}

func appendKeys(keys []string, t reflect.Type, prefix string) []string {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return keys
	}
	for field := range t.Fields() {
		tag, ok := field.Tag.Lookup("toml")
		if !ok {
			continue // of a value type such as Duration
		}
		keys = append(keys, prefix+tag)
		keys = appendKeys(keys, field.Type, prefix+tag+".")
	}
	return keys
}
