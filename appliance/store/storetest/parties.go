package storetest

import (
	"testing"

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
	bare.Roles, bare.Verifier, bare.MAC = nil, nil, nil
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
	c.Name, c.Status, c.Roles, c.Version, c.MAC, c.Verifier = "alicia", store.Suspended, []string{"a,b", `"`}, 2, []byte("mac"), nil
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
