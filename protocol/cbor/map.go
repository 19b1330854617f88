package cbor

import (
	"errors"
	"fmt"
	"math"
)

var errAbsent = errors.New("missing")

// Next splits one item off the front of b.
func Next(b []byte) (item, rest []byte, err error) {
	d := decoder{b}
	if item, err = d.skip(0); err != nil {
		return nil, nil, fmt.Errorf("CBOR: %w", err)
	}
	return item, d.rest, nil
}

// Array splits b, one array and nothing after it, into its items.
func Array(b []byte) ([][]byte, error) {
	d := decoder{b}
	n, err := d.expect(majorArray)
	var items [][]byte
	for i := uint64(0); i < n && err == nil; i++ {
		var item []byte
		item, err = d.skip(1)
		items = append(items, item)
	}
	if err == nil && len(d.rest) != 0 {
		err = fmt.Errorf("%d trailing bytes", len(d.rest))
	}
	if err != nil {
		return nil, fmt.Errorf("CBOR: %w", err)
	}
	return items, nil
}

// Uint reads an item that is an unsigned integer.
func Uint(item []byte) (uint64, error) {
	d := decoder{item}
	return d.expectItem(majorUint)
}

// Bytes reads an item that is a byte string. The result shares memory with item.
func Bytes(item []byte) ([]byte, error) {
	d := decoder{item}
	_, err := d.expectItem(majorBytes)
	return d.rest, err
}

// Text reads an item that is a text string.
func Text(item []byte) (string, error) {
	d := decoder{item}
	_, err := d.expectItem(majorText)
	return string(d.rest), err
}

// expectItem reads the head of an item that was split off before; rest is then its
// content.
func (d *decoder) expectItem(want byte) (uint64, error) {
	if d.rest == nil {
		return 0, errAbsent
	}
	return d.expect(want)
}

// Map reads a map with integer keys member by member. Its first error sticks, so
// that the caller reads all members and checks once, with Close.
type Map struct {
	entries []entry
	err     error
}

type entry struct {
	key  uint64
	item []byte
	read bool
}

// ParseMap reads b, one map and nothing after it. The values that the Map returns
// share memory with b.
func ParseMap(b []byte) *Map {
	d, m := decoder{b}, &Map{}
	n, err := d.expect(majorMap)
	if err == nil {
		m.entries = make([]entry, 0, min(n, 16))
		err = d.entries(n, func(k key) error {
			if k.negative {
				return fmt.Errorf("unknown key %v", k)
			}
			item, err := d.skip(1)
			m.entries = append(m.entries, entry{key: k.n, item: item})
			return err
		})
	}
	if err == nil && len(d.rest) != 0 {
		err = fmt.Errorf("%d trailing bytes", len(d.rest))
	}
	if err != nil {
		m.err = fmt.Errorf("CBOR: %w", err)
	}
	return m
}

func (m *Map) fail(key uint64, err error) {
	if m.err == nil && err != nil {
		m.err = fmt.Errorf("CBOR: key %d: %w", key, err)
	}
}

// Item returns the encoded value of a key, nil if the key is absent.
func (m *Map) Item(key uint64) []byte {
	for i := range m.entries {
		if m.entries[i].key == key {
			m.entries[i].read = true
			return m.entries[i].item
		}
	}
	return nil
}

// Has reports whether the map has the key. It does not count as reading it.
func (m *Map) Has(key uint64) bool {
	for _, e := range m.entries {
		if e.key == key {
			return true
		}
	}
	return false
}

// Uint reads an unsigned integer no larger than limit.
func (m *Map) Uint(key, limit uint64) uint64 {
	v, err := Uint(m.Item(key))
	if err == nil && v > limit {
		err = fmt.Errorf("%d is above %d", v, limit)
	}
	m.fail(key, err)
	return v
}

// OptionalUint reads an unsigned integer, nil if the key is absent.
func (m *Map) OptionalUint(key uint64) *uint64 {
	if !m.Has(key) {
		return nil
	}
	v := m.Uint(key, math.MaxUint64)
	return &v
}

// Bytes reads a byte string.
func (m *Map) Bytes(key uint64) []byte {
	v, err := Bytes(m.Item(key))
	m.fail(key, err)
	return v
}

// Fixed copies a byte string of exactly the length of dst.
func (m *Map) Fixed(key uint64, dst []byte) {
	v, err := Bytes(m.Item(key))
	if err == nil && len(v) != len(dst) {
		err = fmt.Errorf("%d bytes, want %d", len(v), len(dst))
	}
	m.fail(key, err)
	copy(dst, v)
}

// Text reads a text string.
func (m *Map) Text(key uint64) string {
	v, err := Text(m.Item(key))
	m.fail(key, err)
	return v
}

// Close returns the first error, among them a key below 64 that was not read.
func (m *Map) Close() error {
	if m.err != nil {
		return m.err
	}
	for _, e := range m.entries {
		if !e.read && e.key < firstIgnoredKey {
			return fmt.Errorf("CBOR: unknown key %d", e.key)
		}
	}
	return nil
}
