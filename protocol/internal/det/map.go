package det

import (
	"fmt"
	"math"
)

// Map reads a canonical integer-keyed map field by field. The first error sticks
// and is what Close returns, so that a caller reads all fields and checks once.
type Map struct {
	entries []entry
	err     error
}

type entry struct {
	key  uint64
	item []byte
	read bool
}

// ParseMap checks that b is one canonical map and splits it into its entries.
// The values that the Map gives out share memory with b.
func ParseMap(b []byte) *Map {
	entries, err := parseEntries(b)
	if err != nil {
		err = fmt.Errorf("CBOR: %w", err)
	}
	return &Map{entries: entries, err: err}
}

func parseEntries(b []byte) ([]entry, error) {
	major, n, rest, err := head(b)
	if err != nil {
		return nil, err
	}
	if major != majorMap {
		return nil, errNotMap
	}
	after, err := skipMap(rest, n, 0)
	if err != nil {
		return nil, err
	}
	if len(after) != 0 {
		return nil, errTrailing
	}
	entries := make([]entry, n)
	for i := range entries {
		entries[i], rest, err = nextEntry(rest)
		if err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// nextEntry splits one entry off a map that skipMap has checked.
func nextEntry(b []byte) (entry, []byte, error) {
	major, key, value, err := head(b)
	if err != nil {
		return entry{}, nil, err
	}
	if major == majorNegative {
		return entry{}, nil, errNegativeKey
	}
	rest, err := skipItem(value, 0)
	if err != nil {
		return entry{}, nil, err
	}
	return entry{key: key, item: value[:len(value)-len(rest)]}, rest, nil
}

func (m *Map) fail(key uint64, err error) {
	if m.err == nil && err != nil {
		m.err = fmt.Errorf("CBOR: key %d: %w", key, err)
	}
}

// Item gives the encoded value of a key, nil if the key is absent.
func (m *Map) Item(key uint64) []byte {
	for i := range m.entries {
		if m.entries[i].key == key {
			m.entries[i].read = true
			return m.entries[i].item
		}
	}
	return nil
}

// Has tells whether the key is there, and leaves it unread.
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

// Close returns the first error, among them a key below 64 that nobody read.
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
