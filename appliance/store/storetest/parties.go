package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/protocol"
)

var partyTests = map[string]func(*testing.T, *fixture){
	"Client":             testClient,
	"Device":             testDevice,
	"UpdateClient":       testUpdateClient,
	"UpdateDevice":       testUpdateDevice,
	"UpdateKeepsHighest": testUpdateKeepsHighest,
}

func testClient(t *testing.T, f *fixture) {
	got, err := f.Client(t.Context(), f.p.Client.ID)
	f.must(err)
	f.same(got, f.p.Client)
	_, err = f.Client(t.Context(), protocol.ClientID{1})
	f.fails(err, store.ErrNotFound)

	bare := NewClient("aaron") // before alice, without what may be missing
	bare.Roles, bare.Verifier, bare.Cert = nil, nil, nil
	uv := NewClient("x").SigningKey
	bare.UVKey = &uv
	i := NewInvitation(store.KindClient, "aaron")
	f.must(f.Invite(t.Context(), i, Note("")))
	f.must(f.EnrolClient(t.Context(), UseOf(i), bare, Note("")))
	all, err := f.ListClients(t.Context())
	f.must(err)
	f.same(all, []store.Client{bare, f.p.Client})
}

func testDevice(t *testing.T, f *fixture) {
	got, err := f.Device(t.Context(), f.p.Device.ID)
	f.must(err)
	f.same(got, f.p.Device)
	_, err = f.Device(t.Context(), protocol.DeviceID{1})
	f.fails(err, store.ErrNotFound)
	q, err := Seed(t.Context(), f.Store, "aaron")
	f.must(err)
	all, err := f.ListDevices(t.Context())
	f.must(err)
	f.same(all, []store.Device{q.Device, f.p.Device})
}

func testUpdateClient(t *testing.T, f *fixture) {
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	c := f.p.Client
	c.Name, c.Status, c.Roles, c.Version, c.Verifier = "alicia", store.Suspended, []string{"a,b", `"`}, 2, nil
	c.Cert = []byte("cert")
	f.must(f.UpdateClient(t.Context(), c, Note("suspended")))
	got, err := f.Client(t.Context(), c.ID)
	f.must(err)
	f.same(got, c)

	f.unchanged(store.ErrConflict, func() error { return f.UpdateClient(t.Context(), c, Note("again")) })
	late := c
	late.Version = 4
	f.unchanged(store.ErrConflict, func() error { return f.UpdateClient(t.Context(), late, Note("early")) })
	f.unchanged(store.ErrNotFound, func() error { return f.UpdateClient(t.Context(), NewClient("eve"), Note("nobody")) })
	taken := c
	taken.Version, taken.Name = 3, q.Client.Name
	f.unchanged(store.ErrExists, func() error { return f.UpdateClient(t.Context(), taken, Note("taken")) })
}

func testUpdateDevice(t *testing.T, f *fixture) {
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	d := f.p.Device
	d.Name, d.Display, d.Floor, d.Status, d.Version = "gate", "Gate", 3, store.Revoked, 2
	f.must(f.UpdateDevice(t.Context(), d, Note("revoked")))
	got, err := f.Device(t.Context(), d.ID)
	f.must(err)
	f.same(got, d)

	f.unchanged(store.ErrConflict, func() error { return f.UpdateDevice(t.Context(), d, Note("again")) })
	f.unchanged(store.ErrNotFound, func() error { return f.UpdateDevice(t.Context(), NewDevice("none"), Note("nobody")) })
	taken := d
	taken.Version, taken.Name = 3, q.Device.Name
	f.unchanged(store.ErrExists, func() error { return f.UpdateDevice(t.Context(), taken, Note("taken")) })
}

// An administrator who read the client before a serial was spent must not bring
// the counter back.
func testUpdateKeepsHighest(t *testing.T, f *fixture) {
	c := f.p.Client
	f.approves(f.p.Spend(7))
	c.Version, c.Status = 2, store.Suspended
	f.must(f.UpdateClient(t.Context(), c, Note("suspended")))
	if got := f.highest(); got != 7 {
		t.Fatalf("highest counter is %d, want 7", got)
	}
}

var invitationTests = map[string]func(*testing.T, *fixture){
	"Invitation":       testInvitation,
	"InvitationClient": testInvitationClient,
	"InviteTaken":      testInviteTaken,
	"Withdraw":         testWithdraw,
	"EnrolOnce":        testEnrolOnce,
	"EnrolExpired":     testEnrolExpired,
	"EnrolTaken":       testEnrolTaken,
	"EnrolDeviceTaken": testEnrolDeviceTaken,
}

// sameInvitation requires that an invitation is stored as it was made, with a number.
func (f *fixture) sameInvitation(want store.Invitation) {
	f.t.Helper()
	got, err := f.Invitation(f.t.Context(), want.Code)
	f.must(err)
	if got.Number == 0 {
		f.t.Fatal("the store gave no number")
	}
	got.Number = want.Number
	f.same(got, want)
}

func testInvitation(t *testing.T, f *fixture) {
	i := NewInvitation(store.KindDevice, "gate")
	f.must(f.Invite(t.Context(), i, Note("")))
	f.sameInvitation(i)
	_, err := f.Invitation(t.Context(), [32]byte{1})
	f.fails(err, store.ErrNotFound)

	u := UseOf(i)
	f.must(f.EnrolDevice(t.Context(), u, NewDevice("gate"), Note("")))
	i.UsedAt, i.Request, i.Response = u.At, u.Request, u.Response
	f.sameInvitation(i)
	got, err := f.Invitation(t.Context(), i.Code)
	f.must(err)
	if !got.SameRequest(u.Request) || got.SameRequest([32]byte{1}) {
		t.Fatal("the request that used the invitation is not told from another")
	}
}

func testInvitationClient(t *testing.T, f *fixture) {
	named, plain := NewInvitation(store.KindClient, "bob"), NewInvitation(store.KindClient, "carol")
	plain.Roles = nil
	for _, i := range []store.Invitation{named, plain} {
		f.must(f.Invite(t.Context(), i, Note("")))
		f.sameInvitation(i)
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

// testWithdraw: what can still be used is listed, and a withdrawn code enrols no one.
func testWithdraw(t *testing.T, f *fixture) {
	open := func(at time.Time, want ...store.Invitation) {
		t.Helper()
		got, err := f.OpenInvitations(t.Context(), at)
		f.must(err)
		var names []string
		for _, i := range got {
			names = append(names, string(i.Kind)+" "+i.Name)
		}
		var wanted []string
		for _, i := range want {
			wanted = append(wanted, string(i.Kind)+" "+i.Name)
		}
		f.same(names, wanted)
	}
	withdraw := func(kind store.Kind, name string) func() error {
		return func() error { return f.Withdraw(t.Context(), kind, name, Epoch.Add(time.Second), Note("")) }
	}
	open(Epoch)
	bob, gate, other := NewInvitation(store.KindClient, "bob"), NewInvitation(store.KindDevice, "gate"), NewInvitation(store.KindDevice, "bob")
	for _, i := range []store.Invitation{gate, bob, other} {
		f.must(f.Invite(t.Context(), i, Note("")))
	}
	open(Epoch, bob, other, gate)
	open(bob.ExpiresAt)
	f.unchanged(store.ErrNotFound, withdraw(store.KindClient, "gate"))
	f.must(withdraw(store.KindClient, "bob")())
	open(Epoch.Add(time.Second), other, gate)
	f.unchanged(store.ErrNotFound, withdraw(store.KindClient, "bob"))
	use := UseOf(bob)
	use.At = Epoch.Add(2 * time.Second)
	f.unchanged(store.ErrUsed, func() error { return f.EnrolClient(t.Context(), use, NewClient("bob"), Note("")) })
	f.must(f.EnrolDevice(t.Context(), UseOf(gate), NewDevice("gate"), Note("")))
	open(Epoch.Add(time.Second), other)
	f.unchanged(store.ErrNotFound, withdraw(store.KindDevice, "gate")) // it is used
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
	f.sameInvitation(i) // as it was
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

var replaceTests = map[string]func(*testing.T, *fixture){
	"ReplaceInvitation":    testReplaceInvitation,
	"ReplaceEnrolled":      testReplaceEnrolled,
	"ReplaceClient":        testReplaceClient,
	"ReplaceClientSameKey": testReplaceClientSameKey,
	"ReplaceDevice":        testReplaceDevice,
	"ReplaceDeviceOther":   testReplaceDeviceOther,
}

// replacement returns an invitation with Replace, made ten seconds after Epoch.
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

// An enrolled party that is not revoked is not replaced, and a refused invitation withdraws none.
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
