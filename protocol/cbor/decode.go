// Package cbor implements the deterministic CBOR of OA1 (PROTOCOL.md §2, RFC 8949
// §4.2.1): integers, byte and text strings, arrays, maps with integer keys, null.
//
// Decoding is strict and reads the bytes once. It accepts exactly what [Marshal]
// writes for the same Go type: the shortest heads, keys in order and once, every
// member present and of its type and length, and nothing after the item.
package cbor

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// RawMessage is an encoded item.
type RawMessage = cbor.RawMessage

// maxDepth bounds nesting; the deepest structure of OA1 (a batch receipt) has 4.
const maxDepth = 8

// firstIgnoredKey is the first map key that [UnmarshalMap] ignores when it does
// not know it, PROTOCOL.md §2.
const firstIgnoredKey = 64

var (
	errShort    = errors.New("ends early")
	errLong     = errors.New("integer not in shortest form")
	errType     = errors.New("type not used in OA1")
	errDeep     = errors.New("nested too deep")
	errUTF8     = errors.New("text is not UTF-8")
	errKeyOrder = errors.New("map keys not in order or not unique")
	errKeyType  = errors.New("map key is not an integer")
	errEmpty    = errors.New("empty members must be left out")
)

// Unmarshal decodes one item into v, a pointer. It fills integers, strings, byte
// slices and arrays, slices, maps with integer keys, [RawMessage], pointers, and
// structs with the tags toarray or keyasint. A struct member may be absent if its tag
// has omitempty. Byte strings are copied.
func Unmarshal(b []byte, v any) error { return unmarshal(b, v, false) }

// UnmarshalMap decodes a map into a struct as [Unmarshal] does, and ignores keys
// of 64 and above that the struct does not have.
func UnmarshalMap(b []byte, v any) error { return unmarshal(b, v, true) }

func unmarshal(b []byte, v any, open bool) error {
	d := decoder{rest: b}
	var err error
	if open {
		err = d.object(reflect.ValueOf(v).Elem(), 0, true)
	} else {
		err = d.value(reflect.ValueOf(v).Elem(), 0)
	}
	if err == nil && len(d.rest) != 0 {
		err = fmt.Errorf("%d trailing bytes", len(d.rest))
	}
	if err != nil {
		return fmt.Errorf("CBOR: %w", err)
	}
	return nil
}

// Next splits one item off the front of b.
func Next(b []byte) (item, rest []byte, err error) {
	d := decoder{b}
	if item, err = d.skip(0); err != nil {
		return nil, nil, fmt.Errorf("CBOR: %w", err)
	}
	return item, d.rest, nil
}

// decoder reads items off the front of rest.
type decoder struct{ rest []byte }

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

const (
	simpleNull = 22
	null       = majorSimple<<5 | simpleNull
)

// head reads the initial byte and argument of an item.
func (d *decoder) head() (major byte, arg uint64, err error) {
	if len(d.rest) == 0 {
		return 0, 0, errShort
	}
	major, info := d.rest[0]>>5, d.rest[0]&31
	d.rest = d.rest[1:]
	if major == majorSimple || info < 24 {
		return major, uint64(info), nil
	}
	if info > 27 {
		return 0, 0, errType
	}
	size := 1 << (info - 24)
	if len(d.rest) < size {
		return 0, 0, errShort
	}
	for _, c := range d.rest[:size] {
		arg = arg<<8 | uint64(c)
	}
	d.rest = d.rest[size:]
	if least := []uint64{1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}[size]; arg < least {
		return 0, 0, errLong
	}
	return major, arg, nil
}

// expect reads the head of an item of one type.
func (d *decoder) expect(want byte) (arg uint64, err error) {
	major, arg, err := d.head()
	if err == nil && major != want {
		err = fmt.Errorf("type %d, want %d", major, want)
	}
	return arg, err
}

// string reads the content of a string of n bytes.
func (d *decoder) string(n uint64, text bool) ([]byte, error) {
	if n > uint64(len(d.rest)) {
		return nil, errShort
	}
	s := d.rest[:n]
	if text && !utf8.Valid(s) {
		return nil, errUTF8
	}
	d.rest = d.rest[n:]
	return s, nil
}

// skip reads an item of any type and returns its bytes.
func (d *decoder) skip(depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errDeep
	}
	start := d.rest
	major, arg, err := d.head()
	if err != nil {
		return nil, err
	}
	switch major {
	case majorUint, majorNegative:
	case majorBytes, majorText:
		_, err = d.string(arg, major == majorText)
	case majorArray:
		for i := uint64(0); i < arg && err == nil; i++ {
			_, err = d.skip(depth + 1)
		}
	case majorMap:
		err = d.entries(arg, func(key) error {
			_, err := d.skip(depth + 1)
			return err
		})
	default:
		if major != majorSimple || arg != simpleNull {
			err = errType
		}
	}
	return start[:len(start)-len(d.rest)], err
}

// key is an integer map key: n, or -1-n.
type key struct {
	negative bool
	n        uint64
}

// entries reads n keys, which must rise in the order of their bytes, and calls
// value to read the value of each.
func (d *decoder) entries(n uint64, value func(key) error) error {
	var last []byte
	for range n {
		start := d.rest
		major, arg, err := d.head()
		if err != nil {
			return err
		}
		if major != majorUint && major != majorNegative {
			return errKeyType
		}
		encoded := start[:len(start)-len(d.rest)]
		if last != nil && bytes.Compare(last, encoded) >= 0 {
			return errKeyOrder
		}
		last = encoded
		if err := value(key{major == majorNegative, arg}); err != nil {
			return err
		}
	}
	return nil
}

func (k key) String() string {
	if k.negative {
		return fmt.Sprintf("-1-%d", k.n)
	}
	return strconv.FormatUint(k.n, 10)
}

func (k key) int64() (int64, bool) {
	if k.negative {
		return -1 - int64(k.n), k.n <= math.MaxInt64
	}
	return int64(k.n), k.n <= math.MaxInt64
}

var rawType = reflect.TypeFor[RawMessage]()

// value decodes the next item into v.
func (d *decoder) value(v reflect.Value, depth int) error {
	if depth > maxDepth {
		return errDeep
	}
	if v.Type() == rawType {
		item, err := d.skip(depth)
		v.SetBytes(slices.Clone(item))
		return err
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if len(d.rest) != 0 && d.rest[0] == null {
			d.rest = d.rest[1:]
			v.SetZero()
			return nil
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(v.Elem(), depth)
	case reflect.Struct:
		return d.object(v, depth, false)
	case reflect.Slice:
		return d.slice(v, depth)
	case reflect.Map:
		return d.mapping(v, depth)
	default:
		return d.scalar(v)
	}
}

func (d *decoder) scalar(v reflect.Value) error {
	major, arg, err := d.head()
	if err != nil {
		return err
	}
	switch kind := v.Kind(); {
	case v.CanUint() && major == majorUint:
		v.SetUint(arg)
		if v.Uint() != arg {
			return fmt.Errorf("%d is too large", arg)
		}
		return nil
	case v.CanInt() && (major == majorUint || major == majorNegative):
		n, ok := key{major == majorNegative, arg}.int64()
		v.SetInt(n)
		if !ok || v.Int() != n {
			return fmt.Errorf("%d is too large", arg)
		}
		return nil
	case kind == reflect.String && major == majorText:
		s, err := d.string(arg, true)
		v.SetString(string(s))
		return err
	case kind == reflect.Array && v.Type().Elem().Kind() == reflect.Uint8 && major == majorBytes:
		s, err := d.string(arg, false)
		if err == nil && len(s) != v.Len() {
			err = fmt.Errorf("%d bytes, want %d", len(s), v.Len())
		}
		reflect.Copy(v, reflect.ValueOf(s))
		return err
	}
	return fmt.Errorf("type %d for a %s", major, v.Type())
}

func (d *decoder) slice(v reflect.Value, depth int) error {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		n, err := d.expect(majorBytes)
		if err != nil {
			return err
		}
		s, err := d.string(n, false)
		v.SetBytes(append([]byte{}, s...))
		return err
	}
	n, err := d.expect(majorArray)
	if err != nil {
		return err
	}
	if n > uint64(len(d.rest)) {
		return errShort
	}
	v.Set(reflect.MakeSlice(v.Type(), int(n), int(n)))
	for i := range int(n) {
		if err := d.value(v.Index(i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) mapping(v reflect.Value, depth int) error {
	n, err := d.expect(majorMap)
	if err != nil {
		return err
	}
	v.Set(reflect.MakeMap(v.Type()))
	return d.entries(n, func(k key) error {
		name, item := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if err := setKey(name, k); err != nil {
			return err
		}
		if err := d.value(item, depth+1); err != nil {
			return err
		}
		v.SetMapIndex(name, item)
		return nil
	})
}

func setKey(v reflect.Value, k key) error {
	n, ok := k.int64()
	switch {
	case v.CanInt() && ok && !v.OverflowInt(n):
		v.SetInt(n)
	case v.CanUint() && !k.negative && !v.OverflowUint(k.n):
		v.SetUint(k.n)
	default:
		return fmt.Errorf("map key %v for a %s", k, v.Type())
	}
	return nil
}

// object decodes a struct. An open one ignores unknown keys of 64 and above.
func (d *decoder) object(v reflect.Value, depth int, open bool) error {
	s := shapeOf(v.Type())
	if s.array {
		return d.tuple(s, v, depth)
	}
	n, err := d.expect(majorMap)
	if err != nil {
		return err
	}
	next := 0 // the first member that no key has reached
	err = d.entries(n, func(k key) error {
		for next < len(s.members) && s.members[next].compare(k) < 0 {
			if m := s.members[next]; !m.optional {
				return fmt.Errorf("key %d is missing", m.key)
			}
			next++
		}
		if next < len(s.members) && s.members[next].compare(k) == 0 {
			m := s.members[next]
			next++
			if err := d.member(m, v.FieldByIndex(m.index), depth+1); err != nil {
				return fmt.Errorf("key %d: %w", m.key, err)
			}
			return nil
		}
		if !open || k.negative || k.n < firstIgnoredKey {
			return fmt.Errorf("unknown key %v", k)
		}
		_, err := d.skip(depth + 1)
		return err
	})
	if err != nil {
		return err
	}
	for _, m := range s.members[next:] {
		if !m.optional {
			return fmt.Errorf("key %d is missing", m.key)
		}
	}
	return nil
}

func (d *decoder) member(m member, v reflect.Value, depth int) error {
	if err := d.value(v, depth); err != nil {
		return err
	}
	if m.optional && isEmpty(v) {
		return errEmpty
	}
	return nil
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map, reflect.String:
		return v.Len() == 0
	case reflect.Struct, reflect.Array:
		return false
	}
	return v.IsZero()
}

func (d *decoder) tuple(s *shape, v reflect.Value, depth int) error {
	n, err := d.expect(majorArray)
	if err != nil {
		return err
	}
	if n != uint64(len(s.members)) {
		return fmt.Errorf("array of %d, want %d", n, len(s.members))
	}
	for _, m := range s.members {
		if err := d.value(v.FieldByIndex(m.index), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// shape is what the tags of a struct say.
type shape struct {
	array   bool
	members []member // of a map in the order of their encoded keys
}

type member struct {
	index    []int
	key      int64
	optional bool
}

// order of keys in deterministic CBOR: unsigned ones rising, then negative ones falling.
func (m member) compare(k key) int {
	mine := key{m.key < 0, uint64(m.key)}
	if mine.negative {
		mine.n = uint64(-1 - m.key)
	}
	switch {
	case mine.negative && !k.negative:
		return 1
	case !mine.negative && k.negative:
		return -1
	}
	return cmp.Compare(mine.n, k.n)
}

var shapes sync.Map // reflect.Type: *shape

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	s := &shape{}
	s.add(t, nil)
	if !s.array {
		slices.SortFunc(s.members, func(a, b member) int {
			return a.compare(key{b.key < 0, uint64(max(b.key, -1-b.key))})
		})
	}
	shapes.Store(t, s)
	return s
}

func (s *shape) add(t reflect.Type, parent []int) {
	for f := range t.Fields() {
		tag, index := f.Tag.Get("cbor"), append(slices.Clone(parent), f.Index...)
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case f.Name == "_":
			s.array = s.array || options == "toarray"
		case tag == "-":
		case f.Anonymous && tag == "":
			s.add(f.Type, index)
		case s.array:
			s.members = append(s.members, member{index: index})
		default:
			n, err := strconv.ParseInt(name, 10, 64)
			if err != nil || !strings.Contains(options, "keyasint") {
				panic(fmt.Sprintf("cbor: %v.%s has no integer key", t, f.Name))
			}
			s.members = append(s.members, member{index, n, strings.Contains(options, "omitempty")})
		}
	}
}
