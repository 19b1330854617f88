package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// node is a JSON value that keeps the order of its members.
type node struct {
	scalar string // of a scalar, as JSON writes it
	open   byte   // '{' or '[' of a container, else 0
	keys   []string
	items  []node
}

// yamlFromJSON rewrites a JSON document as block-style YAML 1.2. Strings stay in
// double quotes, so that no reader takes one for a number, a date or a truth.
func yamlFromJSON(doc []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	root, err := readNode(dec)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return []byte(root.block(0)), nil
}

func readNode(dec *json.Decoder) (node, error) {
	token, err := dec.Token()
	if err != nil {
		return node{}, err
	}
	delim, isContainer := token.(json.Delim)
	if !isContainer {
		scalar, err := quote(token)
		return node{scalar: scalar}, err
	}
	n := node{open: byte(delim)}
	for dec.More() {
		if n.open == '{' {
			key, err := dec.Token()
			if err != nil {
				return node{}, err
			}
			n.keys = append(n.keys, yamlKey(fmt.Sprint(key)))
		}
		item, err := readNode(dec)
		if err != nil {
			return node{}, err
		}
		n.items = append(n.items, item)
	}
	_, err = dec.Token() // the closing one
	return n, err
}

// block writes a node in lines that begin with indent spaces.
func (n node) block(indent int) string {
	pad := strings.Repeat(" ", indent)
	if n.inline() != "" {
		return pad + n.inline() + "\n"
	}
	var b strings.Builder
	for i, item := range n.items {
		switch {
		case n.open == '[':
			b.WriteString(pad + "- " + item.block(indent + 2)[indent+2:])
		case item.inline() != "":
			b.WriteString(pad + n.keys[i] + ": " + item.inline() + "\n")
		default:
			b.WriteString(pad + n.keys[i] + ":\n" + item.block(indent+2))
		}
	}
	return b.String()
}

// inline returns what fits behind a key, or "" for a container with items.
func (n node) inline() string {
	switch {
	case n.open == 0:
		return n.scalar
	case len(n.items) > 0:
		return ""
	case n.open == '[':
		return "[]"
	}
	return "{}"
}

var (
	plainKey    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)
	yamlSpecial = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
)

func yamlKey(key string) string {
	if plainKey.MatchString(key) && !slices.Contains(yamlSpecial, strings.ToLower(key)) {
		return key
	}
	quoted, err := quote(key)
	if err != nil { // a string always has a JSON form
		return `""`
	}
	return quoted
}

func quote(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(escapeControls(b.Bytes())), "\n"), nil
}
