package protocol

import (
	"bytes"
	"math"

	"countersign/protocol/internal/det"
	"countersign/protocol/internal/text"
)

// Limits of names and texts, in bytes of UTF-8.
const (
	MaxNameBytes = 24
	MaxTextBytes = 44
)

// CheckText applies the rules for a name or text that a person is shown
// (PROTOCOL.md §3) and its limit in bytes. Errors are [CodeFormat].
func CheckText(s string, maxBytes int) error {
	if len(s) > maxBytes {
		return formatError("text of %d bytes, limit %d", len(s), maxBytes)
	}
	if err := text.Check(s); err != nil {
		return formatError("%v", err)
	}
	return nil
}

// Proposal is what C proposes itself (P1.5): an amount, a text, or both.
type Proposal struct {
	Amount *Amount
	Text   string
}

// P1 is the payload of M1, the application.
type P1 struct {
	Client ClientID
	Serial Serial
	// Service is what C asks for.
	Service Service
	// Level is the least that C asks for. The decoder takes any number below 256.
	Level        Level
	Proposal     *Proposal
	Capabilities uint64
	// Asked is the serial whose outcome C asks for; with [ServiceStatus] only,
	// and always there.
	Asked *Serial
}

// Marshal gives the canonical encoding of a P1.
func (p P1) Marshal() []byte {
	m := det.NewMap(96)
	m.Bytes(1, p.Client[:])
	m.Bytes(2, p.Serial[:])
	m.Uint(3, uint64(p.Service))
	m.Uint(4, uint64(p.Level))
	if p.Proposal != nil {
		m.Item(5, p.Proposal.marshal())
	}
	if p.Capabilities != 0 {
		m.Uint(7, p.Capabilities)
	}
	if p.Asked != nil {
		m.Bytes(8, p.Asked[:])
	}
	return m.Encode()
}

// ParseP1 decodes a P1. Errors are [CodeFormat].
func ParseP1(b []byte) (P1, error) {
	m := det.ParseMap(b)
	var p P1
	m.Fixed(1, p.Client[:])
	m.Fixed(2, p.Serial[:])
	p.Service = Service(m.Uint(3, math.MaxUint64))
	p.Level = Level(m.Uint(4, math.MaxUint8))
	proposal := m.Item(5)
	if v := m.OptionalUint(7); v != nil {
		p.Capabilities = *v
	}
	if m.Has(8) {
		p.Asked = new(Serial)
		m.Fixed(8, p.Asked[:])
	}
	if err := m.Close(); err != nil {
		return P1{}, formatError("P1: %v", err)
	}
	if m.Has(7) && p.Capabilities == 0 {
		return P1{}, formatError("P1: capabilities of 0 are left out")
	}
	if (p.Service == ServiceStatus) != (p.Asked != nil) {
		return P1{}, formatError("P1: a serial is asked about with service 2 and only there")
	}
	return p, p.parseProposal(proposal)
}

func (p *P1) parseProposal(item []byte) (err error) {
	if item == nil {
		return nil
	}
	parts, err := det.Array(item)
	if err != nil || len(parts) < 1 || len(parts) > 3 {
		return formatError("P1: proposal is not [amount, currency, ?text] or [text]")
	}
	p.Proposal = &Proposal{}
	if len(parts) > 1 {
		if p.Proposal.Amount, err = parseAmount(parts[:2]); err != nil {
			return err
		}
		parts = parts[2:]
	}
	if len(parts) == 1 {
		p.Proposal.Text, err = parseText(parts[0])
	}
	return err
}

func (p Proposal) marshal() []byte {
	var b []byte
	switch {
	case p.Amount == nil:
		return det.AppendText(det.AppendArray(b, 1), p.Text)
	case p.Text == "":
		return p.Amount.append(det.AppendArray(b, 2))
	default:
		return det.AppendText(p.Amount.append(det.AppendArray(b, 3)), p.Text)
	}
}

func (a Amount) append(b []byte) []byte {
	return det.AppendText(det.AppendUint(b, a.Minor), a.Currency)
}

func parseAmount(parts [][]byte) (*Amount, error) {
	if len(parts) != 2 {
		return nil, formatError("amount is not [minor units, currency]")
	}
	minor, err := det.Uint(parts[0])
	if err != nil {
		return nil, formatError("amount: %v", err)
	}
	currency, err := det.Text(parts[1])
	if err != nil {
		return nil, formatError("currency: %v", err)
	}
	a := Amount{Minor: minor, Currency: currency}
	return &a, a.validate()
}

// parseText reads a text. An empty one is left out, and so not a good one here.
func parseText(item []byte) (string, error) {
	s, err := det.Text(item)
	if err != nil {
		return "", formatError("text: %v", err)
	}
	if s == "" {
		return "", formatError("an empty text is left out")
	}
	return s, CheckText(s, MaxTextBytes)
}

// P3 is the payload of M3, the countersignature.
type P3 struct {
	Verdict   Verdict
	Signature [SignatureSize]byte
	// Proof is the password proof, 16 bytes, or nil.
	Proof []byte
	// Slot is [SlotSigning] or [SlotUV].
	Slot uint64
}

// ProofSize is the length of a password proof.
const ProofSize = 16

// Approval is what a P3 says besides its signature.
func (p P3) Approval() Approval { return Approval{Verdict: p.Verdict, Slot: p.Slot, Proof: p.Proof} }

// Marshal gives the canonical encoding of a P3.
func (p P3) Marshal() []byte {
	m := det.NewMap(96)
	m.Uint(1, uint64(p.Verdict))
	m.Bytes(2, p.Signature[:])
	if p.Proof != nil {
		m.Bytes(3, p.Proof)
	}
	if p.Slot == SlotUV {
		m.Uint(4, p.Slot)
	}
	return m.Encode()
}

// ParseP3 decodes a P3. Errors are [CodeFormat].
func ParseP3(b []byte) (P3, error) {
	m := det.ParseMap(b)
	p := P3{Slot: SlotSigning}
	p.Verdict = Verdict(m.Uint(1, uint64(Approve)))
	m.Fixed(2, p.Signature[:])
	if m.Has(3) {
		p.Proof = bytes.Clone(m.Bytes(3))
	}
	slot := m.OptionalUint(4)
	if err := m.Close(); err != nil {
		return P3{}, formatError("P3: %v", err)
	}
	if p.Proof != nil && len(p.Proof) != ProofSize {
		return P3{}, formatError("P3: proof of %d bytes, want %d", len(p.Proof), ProofSize)
	}
	if slot != nil {
		if p.Slot = *slot; p.Slot != SlotUV {
			return P3{}, formatError("P3: slot %d is not written", p.Slot)
		}
	}
	if p.Verdict == Refuse && (p.Slot != SlotSigning || p.Proof != nil) {
		return P3{}, formatError("P3: a refusal has slot 1 and no proof")
	}
	return p, nil
}
