package bounded

import "testing"

func TestMap(t *testing.T) {
	m := Map[int, string]{Max: 2}
	if _, ok := m.Get(1); ok {
		t.Error("an empty map has an entry")
	}
	m.Delete(1)
	m.Put(1, "one")
	m.Put(2, "two")
	if v, ok := m.Get(1); !ok || v != "one" {
		t.Errorf("1 is %q, %v", v, ok)
	}
	m.Delete(1)
	if _, ok := m.Get(1); ok {
		t.Error("1 was deleted")
	}
	m.Put(1, "again")
	m.Put(3, "three")
	_, one := m.Get(1)
	if v, three := m.Get(3); one || !three || v != "three" || len(m.entries) != 1 {
		t.Errorf("a full map holds %v", m.entries)
	}
}
