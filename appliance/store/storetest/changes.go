package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
)

var changeTests = map[string]func(*testing.T, *fixture){
	"Admins":        testAdmins,
	"Changes":       testChanges,
	"ChangeSigning": testChangeSigning,
	"ChangeEnds":    testChangeEnds,
	"RenewWord":     testRenewWord,
}

// NewAdmin is an active administrator with a fresh key.
func NewAdmin(name string) store.Admin {
	a := store.Admin{Name: name, Status: store.Active, Version: 1, MAC: make([]byte, 32), CreatedAt: Epoch, Change: [8]byte{1}}
	random(a.ID[:])
	random(a.Key[:])
	random(a.MAC)
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
	ann.Change = [8]byte{}
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
	bob.Status, bob.Version, bob.MAC, bob.Change = store.Revoked, 2, ann.MAC, [8]byte{2}
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

// The word of the admin socket is renewed of a request that is over too, and of no other
// signer nor request.
func testRenewWord(t *testing.T, f *fixture) {
	c, unsaid := NewChange(), NewChange()
	one := store.ChangeSignature{Signer: [8]byte{1}, Signature: []byte("signature"), At: Epoch}
	c.Signatures = append(c.Signatures, one)
	unsaid.Signatures = []store.ChangeSignature{one}
	for _, c := range []store.Change{c, unsaid} {
		f.must(f.AddChange(t.Context(), c, Note("change")))
	}
	f.must(f.EndChange(t.Context(), store.ChangeEnd{ID: c.ID, From: store.ChangeOpen, To: store.ChangeTaken, At: Epoch}, Note("")))
	renew := func(id [8]byte) func() error {
		return func() error {
			word := store.ChangeSignature{Signature: []byte("word"), At: Epoch}
			return f.RenewWord(t.Context(), id, word, Note("renewed"))
		}
	}
	f.must(renew(c.ID)())
	got, err := f.Change(t.Context(), c.ID)
	f.must(err)
	f.same(got.Signatures, []store.ChangeSignature{{Signature: []byte("word"), At: Epoch}, one})
	f.unchanged(store.ErrNotFound, renew(unsaid.ID))
	f.unchanged(store.ErrNotFound, renew([8]byte{9}))
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
