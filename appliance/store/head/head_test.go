package head

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"countersign/appliance/store"
)

func TestOpenSet(t *testing.T) {
	var o OpenSet
	open := map[uint64]bool{}
	for n := uint64(1); n <= 100; n++ {
		var number uint64
		if o, number = o.Open(); number != n {
			t.Fatalf("invitation %d has number %d", n, number)
		}
		if open[n] = true; n%3 == 0 {
			o = o.Close(n, n-1, n+50) // one that is none
			open[n], open[n-1] = false, false
		}
	}
	o = o.Close(1, 4, 7)
	open[1], open[4], open[7] = false, false, false
	again, err := ParseOpenSet(o.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(200) {
		if again.Has(n) != open[n] {
			t.Errorf("invitation %d: open is %v", n, again.Has(n))
		}
	}
	if again.Base != 8 {
		t.Errorf("the set begins at %d", again.Base)
	}
	if _, err := ParseOpenSet(append(o.Marshal(), 0)); !errors.Is(err, store.ErrForged) {
		t.Errorf("trailing bytes: %v", err)
	}
	if _, err := ParseOpenSet(OpenSet{Base: 12, Bits: o.Bits}.Marshal()); !errors.Is(err, store.ErrForged) {
		t.Errorf("a set that begins within a byte: %v", err)
	}
	if _, err := ParseOpenSet([]byte{0xff}); !errors.Is(err, store.ErrForged) {
		t.Errorf("no set: %v", err)
	}
}

func testSeals() *store.Seals {
	s := store.NewSeals(nil)
	s.Add(1, make([]byte, 32), false)
	s.Add(2, append(make([]byte, 31), 2), false)
	s.Use(1)
	return s
}

// table holds the rows of one kind, as a driver does.
type table struct {
	t     *testing.T
	seals *store.Seals
	rows  []Row
}

func (x *table) read(Kind) ([]Row, error) { return x.rows, nil }

func (x *table) row(r store.Sealed) Row {
	x.t.Helper()
	seal, err := x.seals.Make(r)
	if err != nil {
		x.t.Fatal(err)
	}
	return Row{Record: r, Seal: seal}
}

// founded returns a table of two administrators and the head of it.
func founded(t *testing.T) (*table, Head) {
	t.Helper()
	x := &table{t: t, seals: testSeals()}
	x.rows = []Row{x.row(store.Admin{ID: [8]byte{1}, Name: "ann"}), x.row(store.Admin{ID: [8]byte{2}, Name: "bob"})}
	h, _, err := Found(x.seals, Head{MAC: 1}).End(func(kind Kind) ([]Row, error) {
		if kind == Admins {
			return x.rows, nil
		}
		return nil, nil
	})
	if err != nil || h.Revision != 1 {
		t.Fatalf("first head: %+v, %v", h, err)
	}
	return x, h
}

// TestVerify accepts the rows of the head in any order, and no others.
func TestVerify(t *testing.T) {
	x, h := founded(t)
	old := x.row(store.Admin{ID: [8]byte{2}, Name: "bob", Version: 9})
	foreign := Row{Record: store.Admin{ID: [8]byte{3}, Name: "eve"}}
	unreadable := Row{Record: store.Admin{}, Err: store.ErrForged}
	spoilt := x.rows[1]
	spoilt.Err = store.ErrForged // of a value that reads as the right one, in another storage class
	ended := Row{Record: store.Change{State: store.ChangeExecuted}}
	for name, c := range map[string]struct {
		rows []Row
		ok   bool
	}{
		"as they were":        {x.rows, true},
		"in another order":    {[]Row{x.rows[1], x.rows[0]}, true},
		"beside a foreign":    {[]Row{x.rows[0], foreign, x.rows[1]}, true},
		"beside rubbish":      {[]Row{x.rows[0], x.rows[1], unreadable}, true},
		"beside an ended one": {[]Row{x.rows[0], x.rows[1], ended}, true},
		"one is missing":      {x.rows[:1], false},
		"one is unreadable":   {[]Row{x.rows[0], spoilt}, false},
		"one is old":          {[]Row{x.rows[0], old}, false},
		"one more":            {[]Row{x.rows[0], x.rows[1], x.row(store.Admin{ID: [8]byte{3}})}, false},
		"one is there twice":  {[]Row{x.rows[0], x.rows[1], x.rows[1]}, false},
		"none":                {nil, false},
	} {
		all, over, err := Verify(x.seals, h, Admins, c.rows)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
		if c.ok && len(all) != 2 || len(over) > 0 != (name == "beside an ended one") {
			t.Errorf("%s: %d records, %d that have ended", name, len(all), len(over))
		}
	}
}

// TestMove accepts a change only if the stored records are the written ones.
func TestMove(t *testing.T) {
	for name, c := range map[string]struct {
		change func(x *table, m *Move)
		ok     bool
	}{
		"nothing": {func(*table, *Move) {}, true},
		"one more": {func(x *table, m *Move) {
			r := x.row(store.Admin{ID: [8]byte{3}})
			m.Wrote(r.Record, r.Seal)
			x.rows = append(x.rows, r)
		}, true},
		"another version": {func(x *table, m *Move) {
			x.rows[1] = x.row(store.Admin{ID: [8]byte{2}, Version: 2})
			m.Wrote(x.rows[1].Record, x.rows[1].Seal)
		}, true},
		"a write that missed": {func(x *table, m *Move) {
			r := x.row(store.Admin{ID: [8]byte{2}, Version: 2})
			m.Wrote(r.Record, r.Seal)
		}, false},
		"a write nobody noted": {func(x *table, _ *Move) { x.rows = x.rows[:1] }, false},
		"another kind":         {func(x *table, m *Move) { m.Wrote(store.Key{Name: "mac"}, store.Seal{}) }, true},
	} {
		x, h := founded(t)
		m, err := Begin(x.seals, h, x.read, Admins)
		if err != nil {
			t.Fatal(err)
		}
		c.change(x, m)
		next, seal, err := m.End(x.read)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok {
			continue
		}
		if _, _, err := Verify(x.seals, next, Admins, x.rows); err != nil || next.Revision != h.Revision+1 {
			t.Errorf("%s: revision %d, %v", name, next.Revision, err)
		}
		if got, err := Open(x.seals, next.Marshal(), seal.Bytes(), h.Mark()); err != nil || got != next {
			t.Errorf("%s: opened %+v, %v", name, got, err)
		}
	}
	x, h := founded(t)
	x.rows = x.rows[:1]
	if _, err := Begin(x.seals, h, x.read, Admins); !errors.Is(err, store.ErrForged) {
		t.Errorf("begun without a record: %v", err)
	}
}

// TestEndedChangeLeaves checks that a change request hangs on the head until it ends.
func TestEndedChangeLeaves(t *testing.T) {
	x := &table{t: t, seals: testSeals()}
	m, err := Begin(x.seals, Head{MAC: 1, Digests: noDigests(t)}, x.read, Changes)
	if err != nil {
		t.Fatal(err)
	}
	open := x.row(store.Change{ID: [8]byte{1}, State: store.ChangeOpen})
	m.Wrote(open.Record, open.Seal)
	if got := len(m.Records(Changes)); got != 1 {
		t.Errorf("%d requests hang", got)
	}
	ended := x.row(store.Change{ID: [8]byte{1}, State: store.ChangeExecuted})
	m.Wrote(ended.Record, ended.Seal)
	if got := len(m.Records(Changes)); got != 0 {
		t.Errorf("%d requests hang after the end", got)
	}
}

// noDigests returns the digests of a store without records.
func noDigests(t *testing.T) [kinds][32]byte {
	t.Helper()
	h, _, err := Found(testSeals(), Head{MAC: 1}).End(func(Kind) ([]Row, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	return h.Digests
}

// TestOpen refuses a head that the floor does not allow.
func TestOpen(t *testing.T) {
	seals := testSeals()
	h := Head{Revision: 5, MAC: 2, Policy: 1}
	seal, err := seals.MakeUnder(h.Record(), 2)
	if err != nil {
		t.Fatal(err)
	}
	under1, err := seals.MakeUnder(h.Record(), 1)
	if err != nil {
		t.Fatal(err)
	}
	other := h
	other.Policy = 2
	for name, c := range map[string]struct {
		body, seal []byte
		floor      store.Mark
		err        error
	}{
		"no floor":            {h.Marshal(), seal.Bytes(), store.Mark{}, nil},
		"the same":            {h.Marshal(), seal.Bytes(), h.Mark(), nil},
		"a newer one":         {h.Marshal(), seal.Bytes(), store.Mark{Revision: 4, MAC: 1}, nil},
		"an older one":        {h.Marshal(), seal.Bytes(), store.Mark{Revision: 6, MAC: 2}, store.ErrForged},
		"another branch":      {h.Marshal(), seal.Bytes(), other.Mark(), store.ErrForged},
		"an older mac":        {h.Marshal(), seal.Bytes(), store.Mark{Revision: 4, MAC: 3}, store.ErrForged},
		"a seal of mac@1":     {h.Marshal(), under1.Bytes(), store.Mark{}, store.ErrForged},
		"another head's seal": {other.Marshal(), seal.Bytes(), store.Mark{}, store.ErrForged},
		"trailing bytes":      {append(h.Marshal(), 0), seal.Bytes(), store.Mark{}, store.ErrForged},
		"empty":               {[]byte{}, seal.Bytes(), store.Mark{}, store.ErrForged},
		"missing":             {nil, nil, store.Mark{Revision: 1}, store.ErrForged},
		"a new store":         {nil, nil, store.Mark{}, store.ErrNotFound},
	} {
		got, err := Open(seals, c.body, c.seal, c.floor)
		if !errors.Is(err, c.err) || c.err == nil && got != h {
			t.Errorf("%s: %+v, %v; want %v", name, got, err, c.err)
		}
	}
}

// TestMarkCoversEveryField checks that another head has another mark, and another record to seal.
func TestMarkCoversEveryField(t *testing.T) {
	for i := range reflect.TypeFor[Head]().NumField() {
		if reflect.TypeFor[Head]().Field(i).Name == "_" {
			continue
		}
		var h Head
		field := reflect.ValueOf(&h).Elem().Field(i)
		for field.Kind() == reflect.Array {
			field = field.Index(field.Len() - 1)
		}
		field.SetUint(1)
		if h.Mark().Head == (Head{}).Mark().Head || slices.Equal(h.Record().Body, Head{}.Record().Body) {
			t.Errorf("field %d changes nothing", i)
		}
	}
}

// TestRaise checks that the head of a restored store is above every head of the lost host.
func TestRaise(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	for name, c := range map[string]struct {
		r    store.Recovered
		want Head
	}{
		"the time":     {store.Recovered{At: at}, Head{Revision: uint64(at.UnixMicro()), MAC: 3}},
		"its own":      {store.Recovered{}, Head{Revision: 7, MAC: 3}},
		"the anchor":   {store.Recovered{Revision: 9}, Head{Revision: 9, MAC: 3}},
		"a newer mac":  {store.Recovered{KeyChange: store.KeyChange{MAC: 4}}, Head{Revision: 7, MAC: 4}},
		"before 1970":  {store.Recovered{At: time.Unix(-9, 0)}, Head{Revision: 7, MAC: 3}},
		"an older mac": {store.Recovered{KeyChange: store.KeyChange{MAC: 2}}, Head{Revision: 7, MAC: 3}},
	} {
		h := Head{Revision: 7, MAC: 3}
		if h.Raise(c.r); h != c.want {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

// TestPolicy checks that the active policy is the one whose hash the head has.
func TestPolicy(t *testing.T) {
	x := &table{t: t, seals: testSeals()}
	one, two := store.Policy{Version: 1, Document: []byte("one")}, store.Policy{Version: 2, Document: []byte("two")}
	all, _, err := fitting(x.seals, Policies, []Row{x.row(one), x.row(two)})
	if err != nil {
		t.Fatal(err)
	}
	var h Head
	h.Activate(store.Policy{Version: 2, Document: []byte("another")})
	if _, err := Policy(x.seals, h, all, 2); !errors.Is(err, store.ErrForged) {
		t.Errorf("another document: %v", err)
	}
	h.Activate(two)
	for version, want := range map[uint64]error{1: nil, 2: nil, 3: store.ErrNotFound} {
		if p, err := Policy(x.seals, h, all, version); !errors.Is(err, want) || p.Version != version {
			t.Errorf("version %d: %+v, %v", version, p, err)
		}
	}
}
