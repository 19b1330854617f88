package world

import (
	"context"
	"fmt"

	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

// The services of the policy.
const (
	Door    protocol.Service = 100
	Payment protocol.Service = 200
	Vault   protocol.Service = 300
)

// EUR is an amount in minor units.
func EUR(minor uint64) *protocol.Amount { return &protocol.Amount{Minor: minor, Currency: "EUR"} }

// Ask is what a phone asks of a device.
type Ask struct {
	Device  string // "": the gate
	Service protocol.Service
	Amount  *protocol.Amount
	Strict  bool
	Asked   *protocol.Serial // with service 2
	First   *Dialog          // with service 1: the dialog that is approved
}

// Dialog is one authorization as phone and device see it, up to M2.
type Dialog struct {
	Ask
	*phone.Session
	Device store.Device
	Serial protocol.Serial
	Nonce  protocol.Nonce
	Chal   protocol.Challenge
	Handle []byte

	M3     []byte // that was sent last
	Answer Answer // to it
}

// Answer is what came back for an M3.
type Answer struct {
	message.P4
	deviceapi.CountersignResponse
}

// Apply runs the first round trip. A refusal in M2 is an error.
func (h *House) Apply(ctx context.Context, p *phone.Phone, ask Ask) (*Dialog, error) {
	if ask.Device == "" {
		ask.Device = "gate"
	}
	d := &Dialog{Ask: ask, Nonce: device.NewNonce()}
	var err error
	if d.Device, err = h.device(ctx, ask.Device); err != nil {
		return nil, err
	}
	p1 := p.Next(ask.Service)
	p1.Asked, d.Serial = ask.Asked, p1.Serial
	if d.Session, err = p.Apply(p1.Marshal()); err != nil {
		return nil, err
	}
	res, err := h.Appliance.Authorize.Apply(ctx, d.Device, d.Request())
	if err != nil {
		return nil, err
	}
	if d.Handle = res.Handle; d.Open(res.M2) != nil || d.P2.Code != 0 {
		return nil, fmt.Errorf("refused in M2: %w", d.P2.Code)
	}
	d.Chal, err = message.ChallengeOf(res.M2)
	return d, err
}

// Request is what the device sends.
func (d *Dialog) Request() deviceapi.ApplyRequest {
	req := deviceapi.ApplyRequest{M1: d.M1, Nonce: d.Nonce, Link: deviceapi.LinkWire, Strict: d.Strict}
	req.Order = deviceapi.Order{Services: []protocol.Service{d.Service}, Amount: d.Amount}
	if d.First != nil {
		req.Handle = d.First.Answer.NextHandle
		req.Order = deviceapi.Order{Services: []protocol.Service{d.First.Service}, Amount: d.First.Amount}
	}
	return req
}

// Send sends an M3 at a house, which may be another one than began the dialog.
func (h *House) Send(ctx context.Context, d *Dialog, m3 []byte) (a Answer, err error) {
	a.CountersignResponse, err = h.Authorize.Countersign(ctx, d.Device, deviceapi.CountersignRequest{Handle: d.Handle, M3: m3})
	if err != nil {
		return a, err
	}
	a.P4, err = d.Result(m3, a.M4)
	return a, err
}

// Approve answers a dialog honestly, and keeps what came back.
func (h *House) Approve(ctx context.Context, d *Dialog) error {
	return h.answer(ctx, d, d.Honest(protocol.Approve))
}

// Refuse has the user refuse.
func (h *House) Refuse(ctx context.Context, d *Dialog) error {
	return h.answer(ctx, d, d.Honest(protocol.Refuse))
}

// Guess tries a wrong password.
func (h *House) Guess(ctx context.Context, d *Dialog, attempt uint8) error {
	return h.answer(ctx, d, d.Session.Guess(attempt))
}

func (h *House) answer(ctx context.Context, d *Dialog, say phone.Answer) (err error) {
	if d.M3, err = d.Sign(ctx, say); err != nil {
		return err
	}
	d.Answer, err = h.Send(ctx, d, d.M3)
	return err
}

// Check is how the device that began a dialog verifies a decision on it.
func (d *Dialog) Check(root protocol.PublicKey, certs [][]byte, now uint64) receipt.Check {
	c := receipt.Check{
		Root: root, KeyCerts: certs, Now: now, Device: d.Device.ID, Nonce: d.Nonce, Challenges: []protocol.Challenge{d.Chal},
		Services: []protocol.Service{d.Service}, Amount: d.Amount, Strict: d.Strict,
	}
	if d.First != nil {
		c.Challenges = []protocol.Challenge{d.First.Chal, d.Chal}
		c.Services, c.Amount = []protocol.Service{d.First.Service}, d.First.Amount
	}
	return c
}
