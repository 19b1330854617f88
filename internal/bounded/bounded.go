// Package bounded provides a map for caches whose keys come from outside.
package bounded

import "sync"

// DefaultMax is the bound of a Map whose Max is 0.
const DefaultMax = 50_000

// Map is a map that empties itself before it would hold more than Max entries. The zero value is
// ready; it is safe for concurrent use.
type Map[K comparable, V any] struct {
	Max int

	mu      sync.Mutex
	entries map[K]V // guarded by mu
}

// Get returns the value of a key, if there is one.
func (m *Map[K, V]) Get(key K) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	value, ok = m.entries[key]
	return value, ok
}

// Put sets the value of a key.
func (m *Map[K, V]) Put(key K, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	most := m.Max
	if most == 0 {
		most = DefaultMax
	}
	if m.entries == nil || len(m.entries) >= most {
		m.entries = map[K]V{}
	}
	m.entries[key] = value
}

// Delete removes a key.
func (m *Map[K, V]) Delete(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}
