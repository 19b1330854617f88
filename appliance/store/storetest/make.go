package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// Epoch is when the suite's things happen.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// Parties are an enrolled client and an enrolled device.
type Parties struct {
	Client store.Client
	Device store.Device
}

// Unseal unseals a store without an anchor, with a key that every test knows, under mac@1.
func Unseal(ctx context.Context, s store.Store) (*store.Seals, error) { return unseal(ctx, s, nil) }

func unseal(ctx context.Context, s store.Store, a store.Anchor) (*store.Seals, error) {
	seals := store.NewSeals(nil)
	seals.Add(1, make([]byte, 32), false)
	seals.Use(1)
	return seals, s.Unseal(ctx, seals, a)
}

// Anchor is an anchor in memory, on a disk that may be full.
type Anchor struct {
	store.Mark
	Full bool
}

// Floor implements [store.Anchor].
func (a *Anchor) Floor() store.Mark { return a.Mark }

// Advance implements [store.Anchor].
func (a *Anchor) Advance(m store.Mark) error {
	switch {
	case a.Full:
		return errors.New("no space left on device")
	case m.Revision < a.Revision || m.MAC < a.MAC:
		return errors.New("the anchor does not go back")
	}
	a.Mark = m
	return nil
}

// NewParties returns a client and a device of this name, not enrolled yet.
func NewParties(name string) Parties {
	return Parties{Client: NewClient(name), Device: NewDevice(name + "-door")}
}

// Seed enrols a new client and a new device of this name.
func Seed(ctx context.Context, s store.Store, name string) (Parties, error) {
	p := NewParties(name)
	return p, p.Enrol(ctx, s)
}

// Enrol founds the store with policy 1 if it is empty, and enrols both parties.
func (p Parties) Enrol(ctx context.Context, s store.Store) error {
	if _, err := s.ActivePolicy(ctx); errors.Is(err, store.ErrNotFound) {
		first := store.Policy{Version: 1, Document: []byte("one"), ActivatedAt: Epoch}
		if err := s.AddTrust(ctx, store.Trust{Policy: first}, Note("policy")); err != nil {
			return err
		}
	}
	client, device := NewInvitation(store.KindClient, p.Client.Name), NewInvitation(store.KindDevice, p.Device.Name)
	for _, i := range []store.Invitation{client, device} {
		if err := s.Invite(ctx, i, Note("invited")); err != nil {
			return err
		}
	}
	if err := s.EnrolClient(ctx, UseOf(client), p.Client, Note("enrolled")); err != nil {
		return err
	}
	return s.EnrolDevice(ctx, UseOf(device), p.Device, Note("enrolled"))
}

func random(b []byte) { _, _ = rand.Read(b) } // never fails, crypto/rand

// NewClient is an active client with a fresh key, as it is enrolled.
func NewClient(name string) store.Client {
	c := store.Client{
		Name: name, Status: store.Active, Roles: []string{"guest", "owner"}, Version: 1,
		Verifier: make([]byte, 40), Cert: make([]byte, 120), Highest: -1, CreatedAt: Epoch,
	}
	random(c.SigningKey[:])
	c.SigningKey[0] = 2
	random(c.Verifier)
	random(c.Cert)
	c.ID = protocol.ClientIDOf(c.SigningKey)
	return c
}

// NewDevice is an active device.
func NewDevice(name string) store.Device {
	id := "spiffe://test/device/" + name
	return store.Device{
		ID: protocol.DeviceIDOf(id), Name: name, SPIFFEID: id, Display: "Door " + name,
		Floor: 1, Status: store.Active, Version: 1, CreatedAt: Epoch,
	}
}

// NewInvitation is open from Epoch on, for an hour.
func NewInvitation(kind store.Kind, name string) store.Invitation {
	i := store.Invitation{Kind: kind, Name: name, CreatedAt: Epoch, ExpiresAt: Epoch.Add(time.Hour)}
	random(i.Code[:])
	switch kind {
	case store.KindDevice:
		i.Display, i.Floor = "Door", 2
	case store.KindClient:
		i.Roles = []string{"approver", "guest"}
	}
	return i
}

// UseOf uses an invitation one minute after Epoch.
func UseOf(i store.Invitation) store.Use {
	u := store.Use{Code: i.Code, At: Epoch.Add(time.Minute), Response: []byte("welcome " + i.Name)}
	random(u.Request[:])
	return u
}

// Note is an audit record with a text.
func Note(text string) audit.Record {
	rec := audit.NewRecord(audit.KindClients, "client/test", map[string]any{"note": text})
	rec.At = Epoch
	return rec
}

// Attempt is a password attempt at Epoch, the first of a challenge whose serial has
// this counter.
func (p Parties) Attempt(counter uint32) store.Attempt {
	a := store.Attempt{AnswerKey: store.AnswerKey{Client: p.Client.ID}, Device: p.Device.ID, Now: Epoch}
	var tail [8]byte
	random(tail[:])
	a.Serial = protocol.NewSerial(counter, tail)
	random(a.M3[:])
	return a
}

// Next is the attempt that follows on a in the same challenge.
func Next(a store.Attempt) store.Attempt {
	a.AnswerKey.Attempt++
	random(a.M3[:])
	return a
}

// Spend returns a countersignature that the store approves, under policy 1, of a serial with this
// counter.
func (p Parties) Spend(counter uint32) store.Spend {
	s := store.Spend{
		AnswerKey:     store.AnswerKey{Client: p.Client.ID},
		PolicyVersion: 1,
		Salt:          audit.NewSalt(),
		Now:           Epoch.Add(time.Duration(counter) * time.Second),
		Evidence: store.Evidence{
			Statement: []byte("statement"),
			Approval:  message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning},
		},
		Decision: receipt.Decision{
			Result: protocol.ResultApproved, Level: 1, Factors: protocol.FactorSignature,
			IssuedAt: uint64(Epoch.Unix()), Lifetime: 60, Device: p.Device.ID, Service: 100,
			Amount: &protocol.Amount{Minor: 1250, Currency: "EUR"},
		},
	}
	var tail [8]byte
	random(tail[:])
	s.Serial = protocol.NewSerial(counter, tail)
	random(s.M3[:])
	random(s.Evidence.Signature[:])
	random(s.Decision.Transaction[:])
	random(s.Decision.Pairwise[:])
	random(s.Decision.U[:])
	s.Decision.Statement = s.Evidence.Statement.Hash()
	return s
}
