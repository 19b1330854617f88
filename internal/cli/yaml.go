package cli

import (
	"bytes"
	"encoding/json"
	"errors"

	"go.yaml.in/yaml/v3"
)

// yamlFromJSON rewrites one JSON document as block-style YAML with its members in the same
// order. Strings keep their double quotes, so that no reader takes them for numbers, dates
// or booleans.
func yamlFromJSON(doc []byte) ([]byte, error) {
	if !json.Valid(doc) {
		return nil, errors.New("not one JSON value")
	}
	var root yaml.Node // every JSON document is a YAML document (YAML 1.2.2, section 1.3)
	if err := yaml.Unmarshal(doc, &root); err != nil {
		return nil, err
	}
	if err := blockStyle(&root); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&root), enc.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// blockStyle takes the brackets and braces off a node, and the quotes off the keys that need
// none.
func blockStyle(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		n.Style = 0
	}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if err := child.Encode(child.Value); err != nil {
				return err
			}
		} else if err := blockStyle(child); err != nil {
			return err
		}
	}
	return nil
}
