package main

import (
	"context"
	"slices"
	"strings"
)

// object is a private or secret key as pkcs11-tool lists it.
type object struct{ label, id, access string }

// list lists the private and secret keys on the token by OpenSC's pkcs11-tool. A key
// that was cut off while the module wrote it has no name, and is none.
func (s *stage) list(ctx context.Context) ([]object, error) {
	out, err := s.tool(ctx, "pkcs11-tool", "--module", softhsm, "--login", "--pin", pin, "--list-objects")
	if err != nil {
		return nil, err
	}
	nameless := func(o object) bool { return o.label == "" }
	return slices.DeleteFunc(parseObjects(out), nameless), nil
}

func parseObjects(out string) (all []object) {
	key := false
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, " ") {
			if key = strings.HasPrefix(line, "Private Key Object") || strings.HasPrefix(line, "Secret Key Object"); key {
				all = append(all, object{})
			}
			continue
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !key {
			continue
		}
		last := &all[len(all)-1]
		switch value = strings.TrimSpace(value); name {
		case "label":
			last.label = value
		case "ID":
			last.id = value
		case "Access":
			last.access = value
		}
	}
	return all
}

// objects are the labels of those keys.
func (s *stage) objects(ctx context.Context) (labels []string, err error) {
	all, err := s.list(ctx)
	for _, o := range all {
		labels = append(labels, o.label)
	}
	return labels, err
}
