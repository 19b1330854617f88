package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/protocol"
)

var recoveryTests = map[string]func(*testing.T, *fixture){
	"SealedCopies":  testSealedCopies,
	"Recover":       testRecover,
	"RecoverPolicy": testRecoverPolicy,
}

// A sealed copy comes with its key, is never written over, and goes with it.
func testSealedCopies(t *testing.T, f *fixture) {
	k := store.Key{
		Name: "mac", Version: 1, ID: [20]byte{1}, CreatedAt: Epoch, Origin: store.Generated, Revision: 1,
		Sealed: []byte("sealed"), SealedFor: make([]byte, 33),
	}
	f.must(f.AddTrust(t.Context(), store.Trust{Keys: []store.Key{k}}, Note("ceremony")))
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
	f.must(f.AddTrust(t.Context(), store.Trust{Keys: []store.Key{k}}, Note("ceremony")))

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

// A policy of the backup comes into force only where it is newer.
func testRecoverPolicy(t *testing.T, f *fixture) {
	for _, c := range []struct {
		version, want uint64
		document      string
	}{{0, 1, "one"}, {1, 1, "one"}, {4, 4, "four"}, {3, 4, "four"}} {
		p := store.Policy{Version: c.version, Document: []byte("four"), ActivatedAt: Epoch, Change: [8]byte{byte(c.version)}}
		f.must(f.Recover(t.Context(), store.Recovered{Policy: p, At: Epoch}, Note("recovered")))
		got, err := f.ActivePolicy(t.Context())
		f.must(err)
		want := store.Policy{Version: c.want, Document: []byte(c.document), ActivatedAt: Epoch}
		if c.want == 4 {
			want.Change = [8]byte{4}
		}
		f.same(got, want)
	}
}
