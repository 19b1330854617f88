package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
)

var replaceTests = map[string]func(*testing.T, *fixture){
	"ReplaceInvitation":    testReplaceInvitation,
	"ReplaceEnrolled":      testReplaceEnrolled,
	"ReplaceClient":        testReplaceClient,
	"ReplaceClientSameKey": testReplaceClientSameKey,
	"ReplaceDevice":        testReplaceDevice,
	"ReplaceDeviceOther":   testReplaceDeviceOther,
}

// replacement is an invitation in place of what is there, made ten seconds after
// Epoch.
func replacement(kind store.Kind, name string) store.Invitation {
	i := NewInvitation(kind, name)
	i.Replace, i.CreatedAt = true, Epoch.Add(10*time.Second)
	return i
}

func (f *fixture) revokeClient(c store.Client) store.Client {
	f.t.Helper()
	c.Status, c.Version = store.Revoked, c.Version+1
	f.must(f.UpdateClient(f.t.Context(), c, Note("revoked")))
	return c
}

func (f *fixture) revokeDevice(d store.Device) store.Device {
	f.t.Helper()
	d.Status, d.Version = store.Revoked, d.Version+1
	f.must(f.UpdateDevice(f.t.Context(), d, Note("revoked")))
	return d
}

func testReplaceInvitation(t *testing.T, f *fixture) {
	lost, device, other := NewInvitation(store.KindClient, "bob"), NewInvitation(store.KindDevice, "bob"), NewInvitation(store.KindClient, "carol")
	for _, i := range []store.Invitation{lost, device, other} {
		f.must(f.Invite(t.Context(), i, Note("")))
	}
	fresh := replacement(store.KindClient, "bob")
	f.must(f.Invite(t.Context(), fresh, Note("")))

	lost.ExpiresAt = fresh.CreatedAt
	stored := fresh
	stored.Replace = false
	for _, want := range []store.Invitation{lost, device, other, stored} { // nothing but the lost one has changed
		f.sameInvitation(want)
	}
	f.unchanged(store.ErrUsed, func() error { return f.EnrolClient(t.Context(), UseOf(lost), NewClient("bob"), Note("")) })
	f.unchanged(store.ErrExists, func() error { // an open one still is in the way of one that does not replace it
		return f.Invite(t.Context(), NewInvitation(store.KindClient, "bob"), Note(""))
	})
	f.must(f.EnrolClient(t.Context(), UseOf(fresh), NewClient("bob"), Note("")))
}

// Who is enrolled and not revoked is not replaced, and an invitation that is
// refused withdraws none.
func testReplaceEnrolled(t *testing.T, f *fixture) {
	invite := func(i store.Invitation) func() error {
		return func() error { return f.Invite(t.Context(), i, Note("")) }
	}
	f.unchanged(store.ErrExists, invite(replacement(store.KindClient, f.p.Client.Name)))
	f.unchanged(store.ErrExists, invite(replacement(store.KindDevice, f.p.Device.Name)))
	suspended := f.p.Client
	suspended.Status, suspended.Version = store.Suspended, 2
	f.must(f.UpdateClient(t.Context(), suspended, Note("")))
	f.unchanged(store.ErrExists, invite(replacement(store.KindClient, f.p.Client.Name)))

	f.revokeClient(suspended)
	f.unchanged(store.ErrExists, invite(NewInvitation(store.KindClient, f.p.Client.Name))) // without Replace
	open := replacement(store.KindClient, f.p.Client.Name)
	f.must(invite(open)())
	again := replacement(store.KindClient, f.p.Client.Name)
	again.Code = open.Code // taken
	f.unchanged(store.ErrExists, invite(again))
	got, err := f.Invitation(t.Context(), open.Code)
	f.must(err)
	f.same(got.ExpiresAt, open.ExpiresAt)
}

func testReplaceClient(t *testing.T, f *fixture) {
	f.approves(f.p.Spend(7))
	lost := f.revokeClient(f.p.Client)
	lost.Highest = 7
	i := replacement(store.KindClient, lost.Name)
	f.must(f.Invite(t.Context(), i, Note("")))
	fresh := NewClient(lost.Name)
	f.must(f.EnrolClient(t.Context(), UseOf(i), fresh, Note("")))

	name := lost.RetiredName()
	f.same(name, "alice~"+lost.ID.String()[:8])
	lost.Name = name
	all, err := f.ListClients(t.Context())
	f.must(err)
	f.same(all, []store.Client{fresh, lost}) // by name; the version and what the MAC covers are as they were

	third := replacement(store.KindClient, fresh.Name) // and once more
	fresh = f.revokeClient(fresh)
	f.must(f.Invite(t.Context(), third, Note("")))
	f.must(f.EnrolClient(t.Context(), UseOf(third), NewClient(fresh.Name), Note("")))
	got, err := f.Client(t.Context(), fresh.ID)
	f.must(err)
	f.same(got.Name, fresh.RetiredName())
}

// A revoked key does not come back, and its client keeps the name.
func testReplaceClientSameKey(t *testing.T, f *fixture) {
	lost := f.revokeClient(f.p.Client)
	i := replacement(store.KindClient, lost.Name)
	f.must(f.Invite(t.Context(), i, Note("")))
	f.unchanged(store.ErrExists, func() error { return f.EnrolClient(t.Context(), UseOf(i), f.p.Client, Note("")) })
	got, err := f.Client(t.Context(), lost.ID)
	f.must(err)
	f.same(got, lost)
	f.must(f.EnrolClient(t.Context(), UseOf(i), NewClient(lost.Name), Note("")))
}

func testReplaceDevice(t *testing.T, f *fixture) {
	first := f.p.Spend(1)
	f.approves(first)
	lost := f.revokeDevice(f.p.Device)
	i := replacement(store.KindDevice, lost.Name)
	f.must(f.Invite(t.Context(), i, Note("")))
	fresh := NewDevice(lost.Name)
	fresh.Display, fresh.Floor, fresh.CreatedAt = "New door", 3, Epoch.Add(time.Minute)
	f.must(f.EnrolDevice(t.Context(), UseOf(i), fresh, Note("")))

	fresh.Version = lost.Version + 1
	all, err := f.ListDevices(t.Context())
	f.must(err)
	f.same(all, []store.Device{fresh})
	// The row is the same: its decisions are still its own.
	f.must(f.Report(t.Context(), store.Report{Device: fresh.ID, Transaction: first.Decision.Transaction, Performed: true, At: Epoch}, Note("")))
	f.approves(f.p.Spend(2))
}

// A revoked device of the same name and another id, or of the same id and another
// SPIFFE ID.
func testReplaceDeviceOther(t *testing.T, f *fixture) {
	lost := f.revokeDevice(f.p.Device)
	i := replacement(store.KindDevice, lost.Name)
	f.must(f.Invite(t.Context(), i, Note("")))
	sameID := lost
	sameID.SPIFFEID, sameID.Status = "spiffe://other/device/"+lost.Name, store.Active
	f.unchanged(store.ErrExists, func() error { return f.EnrolDevice(t.Context(), UseOf(i), sameID, Note("")) })

	fresh := NewDevice("elsewhere")
	fresh.Name = lost.Name
	f.must(f.EnrolDevice(t.Context(), UseOf(i), fresh, Note("")))
	lost.Name = lost.RetiredName()
	all, err := f.ListDevices(t.Context())
	f.must(err)
	f.same(all, []store.Device{fresh, lost})
}
