package storetest

import (
	"context"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

var registryTests = map[string]func(*testing.T, *fixture){
	"Policy":  testPolicy,
	"Trust":   testTrust,
	"Keys":    testKeys,
	"Records": testRecords,
	"Tally":   testTally,
	"Pulse":   testPulse,
}

// testPulse: a pulse can be repeated, also with the same time, and leaves no record.
func testPulse(t *testing.T, f *fixture) {
	before, err := f.Tally(t.Context())
	f.must(err)
	for _, at := range []time.Time{Epoch, Epoch, Epoch.Add(time.Second), Epoch.Add(-time.Hour)} {
		f.must(f.Pulse(t.Context(), at))
	}
	after, err := f.Tally(t.Context())
	f.must(err)
	f.same(after, before)
	_, forged, err := f.Verify(t.Context())
	f.must(err)
	f.same(len(forged), 0)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	f.fails(f.Pulse(canceled, Epoch), context.Canceled)
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
	got, err = f.LastRecords(t.Context(), 3)
	f.must(err)
	f.same(got, []audit.Record{want[4], want[3], want[2]})
	got, err = f.LastRecords(t.Context(), 0)
	f.must(err)
	f.same(len(got), 0)
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
	dry := f.p.Spend(3)
	dry.Dry = true
	f.concludes(dry, protocol.ResultApproved, 0)
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{{Name: "root"}, {Name: "kem"}, {Name: "ca"}}}, Note("")))
	// 1 policy, and 2 invitations and 2 enrolments for each of the names
	f.same(f.tally(), store.Tally{Clients: 2, Devices: 2, Invitations: 4, Decisions: 2, Questions: 1, Records: 13, Keys: 3})
}

var changeTests = map[string]func(*testing.T, *fixture){
	"Admins":         testAdmins,
	"ChangesInForce": testChangesInForce,
	"Changes":        testChanges,
	"ChangeSigning":  testChangeSigning,
	"ChangeEnds":     testChangeEnds,
}

// NewAdmin is an active administrator with a fresh key.
func NewAdmin(name string) store.Admin {
	a := store.Admin{Name: name, Status: store.Active, Version: 1, CreatedAt: Epoch}
	random(a.ID[:])
	random(a.Key[:])
	return a
}

// NewChange is an open request that the admin socket signed.
func NewChange() store.Change {
	c := store.Change{
		Document: make([]byte, 100), State: store.ChangeOpen, CreatedAt: Epoch, ExpiresAt: Epoch.Add(time.Hour),
		Signatures: []store.ChangeSignature{{At: Epoch}},
	}
	random(c.ID[:])
	random(c.Document)
	return c
}

func testAdmins(t *testing.T, f *fixture) {
	add := func(a store.Admin) func() error {
		return func() error { return f.AddAdmin(t.Context(), a, Note("admin")) }
	}
	update := func(a store.Admin) func() error {
		return func() error { return f.UpdateAdmin(t.Context(), a, Note("admin")) }
	}
	bob, ann := NewAdmin("bob"), NewAdmin("ann")
	f.must(add(bob)())
	f.must(add(ann)())
	all, err := f.ListAdmins(t.Context())
	f.must(err)
	f.same(all, []store.Admin{ann, bob})
	for _, same := range []func(*store.Admin){
		func(a *store.Admin) { a.ID = bob.ID }, func(a *store.Admin) { a.Name = bob.Name }, func(a *store.Admin) { a.Key = bob.Key },
	} {
		other := NewAdmin("carol")
		same(&other)
		f.unchanged(store.ErrExists, add(other))
	}
	f.unchanged(store.ErrConflict, update(bob))
	f.unchanged(store.ErrNotFound, update(NewAdmin("carol")))
	bob.Status, bob.Version, bob.Change = store.Revoked, 2, [8]byte{7}
	f.must(update(bob)())
	f.unchanged(store.ErrConflict, update(bob))
	all, err = f.ListAdmins(t.Context())
	f.must(err)
	f.same(all, []store.Admin{ann, bob})
}

func testChanges(t *testing.T, f *fixture) {
	_, err := f.Change(t.Context(), [8]byte{1})
	f.fails(err, store.ErrNotFound)
	first, second := NewChange(), NewChange()
	second.Signatures = nil
	f.must(f.AddChange(t.Context(), first, Note("change")))
	f.must(f.AddChange(t.Context(), second, Note("change")))
	f.unchanged(store.ErrExists, func() error { return f.AddChange(t.Context(), first, Note("")) })
	got, err := f.Change(t.Context(), first.ID)
	f.must(err)
	f.same(got, first)
	all, err := f.ListChanges(t.Context(), 10)
	f.must(err)
	f.same(all, []store.Change{second, first})
	all, err = f.ListChanges(t.Context(), 1)
	f.must(err)
	f.same(all, []store.Change{second})
}

// testChangesInForce: a request is in force until it ends, regardless of how many ended after it.
func testChangesInForce(t *testing.T, f *fixture) {
	inForce := func(want ...store.Change) {
		t.Helper()
		all, err := f.ChangesInForce(t.Context())
		f.must(err)
		f.same(all, want)
	}
	inForce()
	end := func(c store.Change, from, to store.ChangeState) store.Change {
		t.Helper()
		e := store.ChangeEnd{ID: c.ID, From: from, To: to, Required: 1, Signed: []string{"local"}, At: Epoch}
		f.must(f.EndChange(t.Context(), e, Note("")))
		c.State, c.Required, c.Signed = to, e.Required, e.Signed
		return c
	}
	first, last := NewChange(), NewChange()
	f.must(f.AddChange(t.Context(), first, Note("")))
	for range 20 {
		c := NewChange()
		f.must(f.AddChange(t.Context(), c, Note("")))
		end(c, store.ChangeOpen, store.ChangeExecuted)
		inForce(first)
	}
	f.must(f.AddChange(t.Context(), last, Note("")))
	inForce(last, first)
	first = end(first, store.ChangeOpen, store.ChangeTaken)
	inForce(last, first)
	end(first, store.ChangeTaken, store.ChangeExecuted)
	inForce(last)
	if got, err := f.Change(t.Context(), first.ID); err != nil || got.State != store.ChangeExecuted {
		t.Errorf("%+v, %v", got, err)
	}
	end(last, store.ChangeOpen, store.ChangeWithdrawn)
	inForce()
}

func testChangeSigning(t *testing.T, f *fixture) {
	c := NewChange()
	f.must(f.AddChange(t.Context(), c, Note("change")))
	one := store.ChangeSignature{Signer: [8]byte{1}, Signature: []byte("signature"), At: Epoch.Add(time.Minute)}
	sign := func(id [8]byte, s store.ChangeSignature) func() error {
		return func() error { return f.SignChange(t.Context(), id, s, Note("signed")) }
	}
	f.must(sign(c.ID, one)())
	f.unchanged(store.ErrExists, sign(c.ID, one))
	f.unchanged(store.ErrExists, sign(c.ID, store.ChangeSignature{At: Epoch})) // the socket has signed
	f.unchanged(store.ErrNotFound, sign([8]byte{9}, one))
	got, err := f.Change(t.Context(), c.ID)
	f.must(err)
	f.same(got.Signatures, append(c.Signatures, one))
	again := store.ChangeSignature{Signer: one.Signer, Signature: []byte("another"), At: Epoch.Add(time.Hour)}
	resign := func(id [8]byte, s store.ChangeSignature) func() error {
		return func() error { return f.ResignChange(t.Context(), id, s, Note("signed again")) }
	}
	f.must(resign(c.ID, again)())
	f.unchanged(store.ErrNotFound, resign(c.ID, store.ChangeSignature{Signer: [8]byte{2}, At: Epoch}))
	f.unchanged(store.ErrNotFound, resign([8]byte{9}, again))
	got, err = f.Change(t.Context(), c.ID)
	f.must(err)
	f.same(got.Signatures, append(c.Signatures, again))
	f.must(f.EndChange(t.Context(), store.ChangeEnd{ID: c.ID, From: store.ChangeOpen, To: store.ChangeWithdrawn, At: Epoch}, Note("")))
	f.unchanged(store.ErrConflict, sign(c.ID, store.ChangeSignature{Signer: [8]byte{2}, At: Epoch}))
	f.unchanged(store.ErrConflict, resign(c.ID, again))
}

func testChangeEnds(t *testing.T, f *fixture) {
	ends := []store.ChangeState{store.ChangeExecuted, store.ChangeFailed, store.ChangeExpired, store.ChangeWithdrawn}
	for _, end := range ends {
		c := NewChange()
		f.must(f.AddChange(t.Context(), c, Note("change")))
		move := func(from, to store.ChangeState) func() error {
			return func() error {
				e := store.ChangeEnd{ID: c.ID, From: from, To: to, Reason: "because", Required: 2, Signed: []string{"ann", "local"}, At: Epoch.Add(time.Hour)}
				return f.EndChange(t.Context(), e, Note("end"))
			}
		}
		f.unchanged(store.ErrConflict, move(store.ChangeTaken, end))
		f.must(move(store.ChangeOpen, store.ChangeTaken)())
		f.unchanged(store.ErrConflict, move(store.ChangeOpen, store.ChangeTaken))
		got, err := f.Change(t.Context(), c.ID)
		f.must(err)
		f.same(got.EndedAt, time.Time{})
		f.must(move(store.ChangeTaken, end)())
		got, err = f.Change(t.Context(), c.ID)
		f.must(err)
		c.State, c.Reason, c.EndedAt = end, "because", Epoch.Add(time.Hour)
		c.Required, c.Signed = 2, []string{"ann", "local"}
		f.same(got, c)
		for _, to := range append(ends, store.ChangeOpen, store.ChangeTaken) {
			before := f.tally()
			if err := move(end, to)(); err == nil {
				t.Fatalf("from %s to %s", end, to)
			}
			f.same(f.tally(), before)
		}
	}
	e := store.ChangeEnd{ID: [8]byte{9}, From: store.ChangeOpen, To: store.ChangeExpired, At: Epoch}
	f.unchanged(store.ErrNotFound, func() error { return f.EndChange(t.Context(), e, Note("")) })
}

var recoveryTests = map[string]func(*testing.T, *fixture){
	"SealedCopies":  testSealedCopies,
	"Recover":       testRecover,
	"RecoverAhead":  testRecoverAhead,
	"RecoverPolicy": testRecoverPolicy,
	"RecoverAbove":  testRecoverAbove,
	"Anchor":        testAnchor,
	"AnchorFull":    testAnchorFull,
}

// A sealed copy comes with its key, is never written over, and goes with it.
func testSealedCopies(t *testing.T, f *fixture) {
	k := store.Key{
		Name: "mac", Version: 1, ID: [20]byte{1}, CreatedAt: Epoch, Origin: store.Generated, Revision: 1,
		Sealed: []byte("sealed"), SealedFor: make([]byte, 33),
	}
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{k}}, Note("ceremony")))
	f.same(f.keys(), []store.Key{k})
	retired := k
	retired.Revision, retired.RetiredAt, retired.Sealed, retired.SealedFor = 2, Epoch, []byte("another"), nil
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Update: []store.Key{retired}}, Note("key")))
	retired.Sealed, retired.SealedFor = k.Sealed, k.SealedFor
	f.same(f.keys(), []store.Key{retired})
	gone := retired
	gone.Revision, gone.DestroyedAt = 3, Epoch
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Update: []store.Key{gone}}, Note("key")))
	gone.Sealed, gone.SealedFor = nil, nil
	f.same(f.keys(), []store.Key{gone})
}

func (f *fixture) keys() []store.Key {
	f.t.Helper()
	keys, err := f.ListKeys(f.t.Context())
	f.must(err)
	return keys
}

// What waited for an approver when the copy was made waits no more, and a code that was
// open is not.
func testRecover(t *testing.T, f *fixture) {
	waiting, q := f.waits(f.p.pending(5)), f.approver("bob")
	done := f.waits(f.p.pending(6))
	f.concludes(q.approves(1, done), protocol.ResultApproved, 0)
	k := store.Key{Name: "mac", Version: 1, ID: [20]byte{1}, Origin: store.Generated, Revision: 1, Sealed: []byte("sealed"), SealedFor: make([]byte, 33)}
	f.must(f.ChangeKeys(t.Context(), store.KeyChange{Add: []store.Key{k}}, Note("ceremony")))

	open := NewInvitation(store.KindClient, "carol")
	f.must(f.Invite(t.Context(), open, Note("invited")))

	k.Origin, k.Revision = store.Restored, 2
	added := k
	added.Version, added.ID, added.Revision = 2, [20]byte{2}, 1
	r := store.Recovered{KeyChange: store.KeyChange{Add: []store.Key{added}, Update: []store.Key{k}, Settings: map[string][]byte{"a": {1}}}, At: Epoch.Add(time.Second)}
	f.must(f.Recover(t.Context(), r, Note("recovered")))
	f.same(f.keys(), []store.Key{k, added})
	settings, err := f.Settings(t.Context())
	f.must(err)
	f.same(settings, map[string][]byte{"a": {1}})
	f.concludes(q.approves(2, waiting), protocol.ResultDenied, protocol.CodeSerial)
	f.unchanged(store.ErrUsed, func() error { return f.EnrolClient(t.Context(), UseOf(open), NewClient("carol"), Note("enrolled")) })
	f.unchanged(store.ErrExists, func() error { return f.Recover(t.Context(), r, Note("again")) })
}

// A code that was open is dead on a host whose clock is ahead, too.
func testRecoverAhead(t *testing.T, f *fixture) {
	open := NewInvitation(store.KindClient, "carol")
	f.must(f.Invite(t.Context(), open, Note("invited")))
	f.must(f.Recover(t.Context(), store.Recovered{At: Epoch.Add(30 * time.Minute)}, Note("recovered")))
	f.unchanged(store.ErrUsed, func() error { return f.EnrolClient(t.Context(), UseOf(open), NewClient("carol"), Note("enrolled")) })
}

// A policy of the backup comes into force only where it is newer.
func testRecoverPolicy(t *testing.T, f *fixture) {
	for _, c := range []struct {
		version, want uint64
		document      string
	}{{0, 1, "one"}, {1, 1, "one"}, {4, 4, "four"}, {3, 4, "four"}} {
		p := store.Policy{Version: c.version, Document: []byte("four"), ActivatedAt: Epoch}
		f.must(f.Recover(t.Context(), store.Recovered{Policy: p, At: Epoch}, Note("recovered")))
		got, err := f.ActivePolicy(t.Context())
		f.must(err)
		f.same(got, store.Policy{Version: c.want, Document: []byte(c.document), ActivatedAt: Epoch})
	}
}

// testRecoverAbove requires the head of a restored store to be above every head of the lost host.
func testRecoverAbove(t *testing.T, f *fixture) {
	before := f.anchor.Mark
	f.must(f.Recover(t.Context(), store.Recovered{At: Epoch}, Note("recovered")))
	if want := uint64(Epoch.UnixMicro()); before.Revision > want || f.anchor.Revision <= want {
		t.Fatalf("the head went from revision %d to %d, want above %d", before.Revision, f.anchor.Revision, want)
	}
	above := f.anchor.Revision + 1000
	f.must(f.Recover(t.Context(), store.Recovered{At: Epoch, Revision: above}, Note("recovered")))
	if f.anchor.Revision <= above {
		t.Fatalf("the head has revision %d, want above %d", f.anchor.Revision, above)
	}
}

// testAnchor requires the anchor to follow each change of the head, and no other change.
func testAnchor(t *testing.T, f *fixture) {
	before := f.anchor.Mark
	f.approves(f.p.Spend(1))
	f.same(f.anchor.Mark, before)
	f.must(f.AddAdmin(t.Context(), NewAdmin("ann"), Note("added")))
	if after := f.anchor.Mark; after.Revision != before.Revision+1 || after.MAC != 1 || after.Head == before.Head {
		t.Fatalf("the anchor went from %+v to %+v", before, after)
	}
}

// testAnchorFull requires that the head stands still until the anchor has followed its last move.
func testAnchorFull(t *testing.T, f *fixture) {
	f.anchor.Full = true
	before := f.tally()
	for range 3 { // the first is stored, and no more
		f.fails(f.AddAdmin(t.Context(), NewAdmin("ann"), Note("added")), store.ErrUnavailable)
	}
	before.Records++
	f.same(f.tally(), before)
	f.approves(f.p.Spend(1)) // does not move the head
	f.anchor.Full = false
	f.must(f.AddAdmin(t.Context(), NewAdmin("bob"), Note("added")))
	all, err := f.ListAdmins(t.Context())
	f.must(err)
	if len(all) != 2 || all[0].Name != "ann" {
		t.Fatalf("administrators: %+v", all)
	}
}
