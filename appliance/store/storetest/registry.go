package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

var registryTests = map[string]func(*testing.T, *fixture){
	"Policy":  testPolicy,
	"Trust":   testTrust,
	"Keys":    testKeys,
	"Records": testRecords,
	"Tally":   testTally,
}

func testPolicy(t *testing.T, f *fixture) {
	add := func(p store.Policy) func() error {
		return func() error { return f.AddPolicy(t.Context(), p, Note("")) }
	}
	for _, version := range []uint64{0, 1, 3} {
		f.unchanged(store.ErrConflict, add(store.Policy{Version: version, Document: []byte("x")}))
	}
	two := store.Policy{Version: 2, Document: []byte("two"), ActivatedAt: Epoch}
	f.must(add(two)())
	got, err := f.ActivePolicy(t.Context())
	f.must(err)
	f.same(got, two)
	got, err = f.PolicyAt(t.Context(), 1)
	f.must(err)
	f.same(got.Document, []byte("one"))
	_, err = f.PolicyAt(t.Context(), 3)
	f.fails(err, store.ErrNotFound)
}

func testTrust(t *testing.T, f *fixture) {
	mac := store.Key{Name: "mac", Version: 1, ID: [20]byte{1}, CreatedAt: Epoch}
	kem := store.Key{
		Name: "kem", Version: 7, ID: [20]byte{2}, Public: make([]byte, 33), Cert: []byte("cert"),
		NotBefore: Epoch, NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), CreatedAt: Epoch,
	}
	settings := map[string][]byte{"trust_domain": []byte("example.org"), "root_certs": {0, 1, 2}}
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{mac, kem}, Settings: settings}, Note("ceremony")))
	keys, err := f.ListKeys(t.Context())
	f.must(err)
	f.same(keys, []store.Key{kem, mac})
	got, err := f.Settings(t.Context())
	f.must(err)
	f.same(got, settings)

	next := kem
	next.Version = 8
	trust := store.Trust{Keys: []store.Key{next}, Settings: map[string][]byte{"new": {1}}} // a store is founded once
	f.unchanged(store.ErrExists, func() error { return f.AddTrust(t.Context(), trust, Note("")) })
	got, err = f.Settings(t.Context())
	f.must(err)
	f.same(got, settings)
}

func testKeys(t *testing.T, f *fixture) {
	change := func(c store.KeyChange) func() error {
		return func() error { return f.ChangeKeys(t.Context(), c, Note("key")) }
	}
	one := store.Key{
		Name: "kem", Version: 1, ID: [20]byte{1}, Public: make([]byte, 33), Cert: []byte("cert"), CreatedAt: Epoch,
		Root: 1, Origin: store.Generated, Tokens: []string{"countersign"}, Revision: 1, ActivatedAt: Epoch,
	}
	two := one
	two.Version, two.ID, two.ActivatedAt = 2, [20]byte{2}, Epoch.Add(time.Hour)
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{one}, Settings: map[string][]byte{"a": {1}}}, Note("ceremony")))
	f.must(change(store.KeyChange{Add: []store.Key{two}, Settings: map[string][]byte{"a": {2}, "b": {3}}})())

	retired := one
	retired.Revision, retired.RetiredAt, retired.Cert = 2, Epoch.Add(time.Minute), []byte("another")
	three := two
	three.Version, three.ID = 3, [20]byte{3}
	for want, c := range map[error]store.KeyChange{
		store.ErrExists:   {Add: []store.Key{three, two}},
		store.ErrConflict: {Add: []store.Key{three}, Update: []store.Key{one}, Settings: map[string][]byte{"a": {9}}},
		store.ErrNotFound: {Add: []store.Key{three}, Update: []store.Key{{Name: "kem", Version: 9, Revision: 2}}},
	} {
		f.unchanged(want, change(c))
	}
	f.must(change(store.KeyChange{Update: []store.Key{retired}})())
	f.unchanged(store.ErrConflict, change(store.KeyChange{Update: []store.Key{retired}}))
	keys, err := f.ListKeys(t.Context())
	f.must(err)
	f.same(keys, []store.Key{retired, two})
	settings, err := f.Settings(t.Context())
	f.must(err)
	f.same(settings, map[string][]byte{"a": {2}, "b": {3}})

	gone := retired
	gone.Revision, gone.CompromisedAt, gone.DestroyedAt = 3, Epoch, Epoch
	f.must(change(store.KeyChange{Update: []store.Key{gone}})())
	gone.Revision, gone.DestroyedAt = 4, time.Time{}
	before := f.tally()
	if err := change(store.KeyChange{Update: []store.Key{gone}})(); err == nil {
		t.Fatal("a destroyed key came back")
	}
	f.same(f.tally(), before)
}

func testRecords(t *testing.T, f *fixture) {
	first := uint64(len(f.records()))
	want := make([]audit.Record, 5)
	for i := range want {
		want[i] = Note("n")
		want[i].Subject, want[i].Kind = "device/door", audit.KindFailures
		f.must(f.Append(t.Context(), want[i]))
		want[i].Sequence = first + uint64(i) + 1
	}
	got, err := f.Records(t.Context(), first, 10)
	f.must(err)
	f.same(got, want)
	got, err = f.Records(t.Context(), first+1, 2)
	f.must(err)
	f.same(got, want[1:3])
	for _, none := range []struct {
		after uint64
		limit int
	}{{first + 5, 10}, {0, 0}, {0, -1}} {
		got, err = f.Records(t.Context(), none.after, none.limit)
		f.must(err)
		if len(got) != 0 {
			t.Fatalf("records after %d, at most %d: got %d", none.after, none.limit, len(got))
		}
	}
	if want[0].Leaf() == want[1].Leaf() {
		t.Fatal("records of the same body have the same leaf")
	}
}

func testTally(t *testing.T, f *fixture) {
	_, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	f.approves(f.p.Spend(1))
	f.approves(f.p.Spend(2))
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{{Name: "root"}, {Name: "kem"}, {Name: "ca"}}}, Note("")))
	// 1 policy, and 2 invitations and 2 enrolments for each of the names
	f.same(f.tally(), store.Tally{Clients: 2, Devices: 2, Invitations: 4, Decisions: 2, Records: 12, Keys: 3})
}
