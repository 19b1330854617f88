// Package det is the deterministic CBOR of OA1 (PROTOCOL.md §2, RFC 8949 §4.2.1).
// Encoding is core deterministic; decoding first walks the bytes and refuses
// whatever the encoder would not have written, and only then lets the library
// fill the struct.
package det

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   maxDepth,
		MaxArrayElements:  128 * 1024,
		ExtraReturnErrors: cbor.ExtraDecErrorNone,
	}.DecMode())
)

// maxDepth bounds nesting; the deepest structure of OA1 (a batch receipt) has 4.
const maxDepth = 8

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal encodes v deterministically. It panics only on a type that cannot be
// encoded, which is a defect in the caller and not a matter of input.
func Marshal(v any) []byte { return must(encMode.Marshal(v)) }

// UnmarshalMap decodes a canonical integer-keyed map into a struct with keyasint
// tags. Keys below 64 that are not among known are an error; others are ignored,
// PROTOCOL.md §2.
func UnmarshalMap(b []byte, v any, known ...uint64) error {
	keys, err := Keys(b)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k < firstIgnoredKey && !slices.Contains(known, k) {
			return fmt.Errorf("CBOR: unknown key %d", k)
		}
	}
	return decode(b, v)
}

const firstIgnoredKey = 64

// Unmarshal decodes one canonical item.
func Unmarshal(b []byte, v any) error {
	if err := Canonical(b); err != nil {
		return err
	}
	return decode(b, v)
}

func decode(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("CBOR: %w", err)
	}
	return nil
}

// Canonical checks that b is exactly one deterministic item made of the types
// OA1 has: unsigned and negative integers, byte and text strings, arrays,
// integer-keyed maps, null.
func Canonical(b []byte) error {
	rest, err := skipItem(b, 0)
	if err != nil {
		return fmt.Errorf("CBOR: %w", err)
	}
	if len(rest) != 0 {
		return fmt.Errorf("CBOR: %d trailing bytes", len(rest))
	}
	return nil
}

var (
	errShort    = errors.New("ends early")
	errLong     = errors.New("integer not in shortest form")
	errType     = errors.New("type not used in OA1")
	errDeep     = errors.New("nested too deep")
	errUTF8     = errors.New("text is not UTF-8")
	errKeyOrder = errors.New("map keys not in order or not unique")
	errKeyType  = errors.New("map key is not an integer")
	errNotMap   = errors.New("not a map")
)

// The major types of RFC 8949 §3.1.
const (
	majorUint = iota
	majorNegative
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

const simpleNull = 22

// head reads the initial byte and argument of an item.
func head(b []byte) (major byte, arg uint64, rest []byte, err error) {
	if len(b) == 0 {
		return 0, 0, nil, errShort
	}
	major, info := b[0]>>5, b[0]&31
	if major == majorSimple || info < 24 {
		return major, uint64(info), b[1:], nil
	}
	if info > 27 {
		return 0, 0, nil, errType
	}
	size := 1 << (info - 24)
	if len(b) < 1+size {
		return 0, 0, nil, errShort
	}
	for _, c := range b[1 : 1+size] {
		arg = arg<<8 | uint64(c)
	}
	if !shortest(arg, size) {
		return 0, 0, nil, errLong
	}
	return major, arg, b[1+size:], nil
}

func shortest(arg uint64, size int) bool {
	switch size {
	case 1:
		return arg >= 24
	case 2:
		return arg > 0xff
	case 4:
		return arg > 0xffff
	default:
		return arg > 0xffffffff
	}
}

// skipItem checks one item and returns what follows it.
func skipItem(b []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errDeep
	}
	major, arg, rest, err := head(b)
	if err != nil {
		return nil, err
	}
	switch major {
	case majorUint, majorNegative:
		return rest, nil
	case majorBytes, majorText:
		return skipString(rest, arg, major == majorText)
	case majorArray:
		return skipArray(rest, arg, depth)
	case majorMap:
		return skipMap(rest, arg, depth)
	case majorSimple:
		if arg == simpleNull {
			return rest, nil
		}
	}
	return nil, errType
}

func skipString(b []byte, n uint64, text bool) ([]byte, error) {
	if n > uint64(len(b)) {
		return nil, errShort
	}
	if text && !utf8.Valid(b[:n]) {
		return nil, errUTF8
	}
	return b[n:], nil
}

func skipArray(b []byte, n uint64, depth int) ([]byte, error) {
	var err error
	for range n {
		if b, err = skipItem(b, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func skipMap(b []byte, n uint64, depth int) ([]byte, error) {
	var last []byte
	for range n {
		major, _, value, err := head(b)
		if err != nil {
			return nil, err
		}
		if major != majorUint && major != majorNegative {
			return nil, errKeyType
		}
		key := b[:len(b)-len(value)]
		if last != nil && bytes.Compare(last, key) >= 0 {
			return nil, errKeyOrder
		}
		last = key
		if b, err = skipItem(value, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Keys checks that b is one canonical map and lists its keys; a negative one is
// an error, since no map that comes with known keys has one.
func Keys(b []byte) ([]uint64, error) {
	entries, err := parseEntries(b)
	if err != nil {
		return nil, fmt.Errorf("CBOR: %w", err)
	}
	keys := make([]uint64, len(entries))
	for i, e := range entries {
		keys[i] = e.key
	}
	return keys, nil
}
