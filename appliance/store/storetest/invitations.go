package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
)

var invitationTests = map[string]func(*testing.T, *fixture){
	"Invitation":       testInvitation,
	"InviteTaken":      testInviteTaken,
	"EnrolOnce":        testEnrolOnce,
	"EnrolExpired":     testEnrolExpired,
	"EnrolTaken":       testEnrolTaken,
	"EnrolDeviceTaken": testEnrolDeviceTaken,
}

func testInvitation(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindDevice, "gate")
	f.must(f.Invite(t.Context(), i, Note("")))
	got, err := f.Invitation(t.Context(), i.Code)
	f.must(err)
	f.same(got, i)
	_, err = f.Invitation(t.Context(), [32]byte{1})
	f.fails(err, store.ErrNotFound)

	u := UseOf(i)
	f.must(f.EnrolDevice(t.Context(), u, NewDevice("gate"), Note("")))
	got, err = f.Invitation(t.Context(), i.Code)
	f.must(err)
	i.UsedAt, i.Request, i.Response = u.At, u.Request, u.Response
	f.same(got, i)
	if !got.SameRequest(u.Request) || got.SameRequest([32]byte{1}) {
		t.Fatal("the request that used the invitation is not told from another")
	}
}

func testInviteTaken(t *testing.T, f *fixture) {
	invite := func(i store.Invitation) func() error {
		return func() error { return f.Invite(t.Context(), i, Note("")) }
	}
	f.unchanged(store.ErrExists, invite(NewInvitation(store.KindClient, f.p.Client.Name)))
	f.unchanged(store.ErrExists, invite(NewInvitation(store.KindDevice, f.p.Device.Name)))
	f.must(invite(NewInvitation(store.KindDevice, f.p.Client.Name))()) // of the other kind

	open := NewInvitation(store.KindClient, "bob")
	f.must(invite(open)())
	again := NewInvitation(store.KindClient, "bob")
	again.CreatedAt = open.ExpiresAt.Add(-time.Microsecond)
	f.unchanged(store.ErrExists, invite(again))
	again.CreatedAt = open.ExpiresAt
	f.must(invite(again)())

	open.Name = "carol" // the same code
	f.unchanged(store.ErrExists, invite(open))
	before := f.tally()
	if invite(store.Invitation{Kind: "relay", Name: "x", Code: [32]byte{2}})() == nil || f.tally() != before {
		t.Fatal("an invitation of an unknown kind was stored")
	}
}

func testEnrolOnce(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindClient, "bob")
	f.must(f.Invite(t.Context(), i, Note("")))
	enrol := func(name string) func() error {
		return func() error { return f.EnrolClient(t.Context(), UseOf(i), NewClient(name), Note("")) }
	}
	f.unchanged(store.ErrNotFound, func() error { // a client's code is no device's
		return f.EnrolDevice(t.Context(), UseOf(i), NewDevice("bob"), Note(""))
	})
	f.must(enrol("bob")())
	f.unchanged(store.ErrUsed, enrol("bob"))
	f.unchanged(store.ErrUsed, enrol("robert"))
	f.unchanged(store.ErrNotFound, func() error {
		return f.EnrolClient(t.Context(), store.Use{Code: [32]byte{1}, At: Epoch}, NewClient("eve"), Note(""))
	})
}

func testEnrolExpired(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindDevice, "gate")
	f.must(f.Invite(t.Context(), i, Note("")))
	u := UseOf(i)
	u.At = i.ExpiresAt
	f.unchanged(store.ErrUsed, func() error { return f.EnrolDevice(t.Context(), u, NewDevice("gate"), Note("")) })
	u.At = i.ExpiresAt.Add(-time.Microsecond)
	f.must(f.EnrolDevice(t.Context(), u, NewDevice("gate"), Note("")))
}

func testEnrolTaken(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindClient, "bob")
	f.must(f.Invite(t.Context(), i, Note("")))
	sameID, sameName := f.p.Client, NewClient(f.p.Client.Name)
	sameID.Name = "bob"
	for _, c := range []store.Client{sameID, sameName} {
		f.unchanged(store.ErrExists, func() error { return f.EnrolClient(t.Context(), UseOf(i), c, Note("")) })
	}
	got, err := f.Invitation(t.Context(), i.Code)
	f.must(err)
	f.same(got, i) // as it was
	f.must(f.EnrolClient(t.Context(), UseOf(i), NewClient("bob"), Note("")))
}

func testEnrolDeviceTaken(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindDevice, "gate")
	f.must(f.Invite(t.Context(), i, Note("")))
	sameName, sameHandle, sameSPIFFE := NewDevice("gate"), NewDevice("gate"), NewDevice("gate")
	sameName.Name = f.p.Device.Name
	copy(sameHandle.ID[:4], f.p.Device.ID[:])
	sameSPIFFE.SPIFFEID = f.p.Device.SPIFFEID
	for _, d := range []store.Device{sameName, sameHandle, sameSPIFFE} {
		f.unchanged(store.ErrExists, func() error { return f.EnrolDevice(t.Context(), UseOf(i), d, Note("")) })
	}
	f.must(f.EnrolDevice(t.Context(), UseOf(i), NewDevice("gate"), Note("")))
}
