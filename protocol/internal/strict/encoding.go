// Package strict decodes CBOR and JSON and accepts only the form that OA1 writes.
// Its errors wrap protocol.CodeFormat.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"countersign/protocol"
	"countersign/protocol/cbor"
)

// Map decodes a map into a struct and ignores unknown keys of 64 and above.
func Map(b []byte, v any) error { return format(cbor.UnmarshalMap(b, v)) }

// Item decodes one item.
func Item(b []byte, v any) error { return format(cbor.Unmarshal(b, v)) }

func format(err error) error {
	if err == nil {
		return nil
	}
	return protocol.CodeFormat.Errorf("%v", err)
}

// ToBase64 converts a list for JSON.
func ToBase64(list [][]byte) []protocol.Base64 {
	out := make([]protocol.Base64, len(list))
	for i, b := range list {
		out[i] = b
	}
	return out
}

// FromBase64 is the inverse of [ToBase64].
func FromBase64(list []protocol.Base64) [][]byte {
	out := make([][]byte, len(list))
	for i, b := range list {
		out[i] = b
	}
	return out
}

// Fixed copies b to dst, which must have the same length.
func Fixed(dst []byte, name string, b []byte) error {
	if len(b) != len(dst) {
		return protocol.CodeFormat.Errorf("%s has %d bytes: want %d", name, len(b), len(dst))
	}
	copy(dst, b)
	return nil
}

// maxJSONDepth is far above the deepest document of OA1, which has three levels.
const maxJSONDepth = 16

// JSON decodes one JSON object into v. It returns CodeFormat for unknown or duplicate members,
// members in another case, null, invalid UTF-8 and trailing data.
func JSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return protocol.CodeFormat.Errorf("JSON is not UTF-8")
	}
	if err := checkMembers(b); err != nil {
		return protocol.CodeFormat.Errorf("JSON: %v", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return protocol.CodeFormat.Errorf("JSON: %v", err)
	}
	return nil
}

var (
	errDuplicate = errors.New("duplicate member")
	errNull      = errors.New("null")
	errName      = errors.New("member name is not in lower case")
	errNotObject = errors.New("not an object")
	errTrailing  = errors.New("trailing data")
	errDepth     = errors.New("nested too deep")
)

func checkMembers(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	start, err := d.Token()
	if err != nil {
		return err
	}
	if start != json.Delim('{') {
		return errNotObject
	}
	if err := checkObject(d, 1); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errTrailing
	}
	return nil
}

// checkObject checks the rest of an object after its opening brace.
func checkObject(d *json.Decoder, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return errName
		}
		if seen[name] {
			return errDuplicate
		}
		seen[name] = true
		if err := checkValue(d, depth); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func checkValue(d *json.Decoder, depth int) error {
	if depth > maxJSONDepth {
		return errDepth
	}
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch token {
	case nil:
		return errNull
	case json.Delim('{'):
		return checkObject(d, depth+1)
	case json.Delim('['):
		for d.More() {
			if err := checkValue(d, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

// NonNil returns an empty slice for nil, which CBOR would encode as null.
func NonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
