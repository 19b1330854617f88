package protocol

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol/internal/det"
)

// marshal, unmarshal and unmarshalMap are the codec of package det with its
// errors turned into [CodeFormat].

func marshal(v any) []byte { return det.Marshal(v) }

func unmarshal(b []byte, v any) error {
	if err := det.Unmarshal(b, v); err != nil {
		return formatError("%v", err)
	}
	return nil
}

func unmarshalMap(b []byte, v any, known ...uint64) error {
	if err := det.UnmarshalMap(b, v, known...); err != nil {
		return formatError("%v", err)
	}
	return nil
}

// firstIgnoredKey is the first map key a reader ignores when it does not know
// it, PROTOCOL.md §2.
const firstIgnoredKey = 64

// unmarshalExact decodes an integer-keyed map and requires that v marshals back
// to the same bytes, ignored keys aside. The library takes null for anything and
// a byte string of any length for an array; this does not.
func unmarshalExact(b []byte, v any, known ...uint64) error {
	if err := unmarshalMap(b, v, known...); err != nil {
		return err
	}
	kept, err := withoutIgnored(b)
	if err != nil {
		return err
	}
	if !bytes.Equal(marshal(v), kept) {
		return formatError("CBOR map has a member of another type or length")
	}
	return nil
}

// unmarshalSame is unmarshalExact for what is not a map.
func unmarshalSame(b []byte, v any) error {
	if err := unmarshal(b, v); err != nil {
		return err
	}
	if !bytes.Equal(marshal(v), b) {
		return formatError("CBOR item has a member of another type or length")
	}
	return nil
}

// withoutIgnored gives the map without its keys of 64 and above.
func withoutIgnored(b []byte) ([]byte, error) {
	var m map[int64]cbor.RawMessage
	if err := unmarshal(b, &m); err != nil {
		return nil, err
	}
	before := len(m)
	for k := range m {
		if k >= firstIgnoredKey {
			delete(m, k)
		}
	}
	if len(m) == before {
		return b, nil
	}
	return marshal(m), nil
}

// Base64 is a byte string that is base64url without padding in JSON, RFC 4648
// §5, in its one canonical form.
type Base64 []byte

var base64url = base64.RawURLEncoding.Strict()

func (b Base64) String() string { return base64url.EncodeToString(b) }

// MarshalText writes base64url without padding.
func (b Base64) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText refuses padding, white space and set bits after the end:
// CodeFormat.
func (b *Base64) UnmarshalText(text []byte) error {
	// The library skips line breaks, which are not base64url.
	if bytes.ContainsAny(text, "\r\n") {
		return formatError("base64url with a line break")
	}
	decoded, err := base64url.AppendDecode([]byte{}, text)
	if err != nil {
		return formatError("base64url without padding: %v", err)
	}
	*b = decoded
	return nil
}

func toBase64(list [][]byte) []Base64 {
	out := make([]Base64, len(list))
	for i, b := range list {
		out[i] = b
	}
	return out
}

func fromBase64(list []Base64) [][]byte {
	out := make([][]byte, len(list))
	for i, b := range list {
		out[i] = b
	}
	return out
}

// fixed copies b to dst and requires the length to be right.
func fixed(dst []byte, name string, b []byte) error {
	if len(b) != len(dst) {
		return formatError("%s has %d bytes: want %d", name, len(b), len(dst))
	}
	copy(dst, b)
	return nil
}

// maxJSONDepth is far above the deepest document of OA1, which has three levels.
const maxJSONDepth = 16

// strictJSON reads one JSON object into v: CodeFormat on unknown or duplicate
// members, members in another case than ours, null, bytes that are not UTF-8, and
// trailing data.
func strictJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return formatError("JSON is not UTF-8")
	}
	if err := checkMembers(b); err != nil {
		return formatError("JSON: %v", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return formatError("JSON: %v", err)
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

// checkObject reads what follows an opening brace, the closing one included.
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
