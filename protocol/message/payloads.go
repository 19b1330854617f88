package message

import (
	"bytes"
	"math"

	"countersign/protocol"
	"countersign/protocol/cbor"
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
		return protocol.CodeFormat.Errorf("text of %d bytes, limit %d", len(s), maxBytes)
	}
	if err := text.Check(s); err != nil {
		return protocol.CodeFormat.Errorf("%v", err)
	}
	return nil
}

// CapabilityFullReceipt is the bit of P1.7 that asks for the decision in P4.4.
const CapabilityFullReceipt = 1

// Proposal is what C proposes itself (P1.5): an amount, a text, or both.
type Proposal struct {
	Amount *protocol.Amount
	Text   string
}

// P1 is the payload of M1, the application.
type P1 struct {
	Client protocol.ClientID
	Serial protocol.Serial
	// Service is what C asks for.
	Service protocol.Service
	// Level is the least that C asks for. The decoder takes any number below 256.
	Level        protocol.Level
	Proposal     *Proposal
	Capabilities uint64
	// Asked is the serial whose outcome C asks for; with [ServiceStatus] only,
	// and always there.
	Asked *protocol.Serial
}

// Marshal gives the canonical encoding of a P1.
func (p P1) Marshal() []byte {
	m := cbor.NewMap(96)
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
	m := cbor.ParseMap(b)
	var p P1
	m.Fixed(1, p.Client[:])
	m.Fixed(2, p.Serial[:])
	p.Service = protocol.Service(m.Uint(3, math.MaxUint64))
	p.Level = protocol.Level(m.Uint(4, math.MaxUint8))
	proposal := m.Item(5)
	if v := m.OptionalUint(7); v != nil {
		p.Capabilities = *v
	}
	if m.Has(8) {
		p.Asked = new(protocol.Serial)
		m.Fixed(8, p.Asked[:])
	}
	if err := m.Close(); err != nil {
		return P1{}, protocol.CodeFormat.Errorf("P1: %v", err)
	}
	if m.Has(7) && p.Capabilities == 0 {
		return P1{}, protocol.CodeFormat.Errorf("P1: capabilities of 0 are left out")
	}
	if (p.Service == protocol.ServiceStatus) != (p.Asked != nil) {
		return P1{}, protocol.CodeFormat.Errorf("P1: a serial is asked about with service 2 and only there")
	}
	return p, p.parseProposal(proposal)
}

func (p *P1) parseProposal(item []byte) (err error) {
	if item == nil {
		return nil
	}
	parts, err := cbor.Array(item)
	if err != nil || len(parts) < 1 || len(parts) > 3 {
		return protocol.CodeFormat.Errorf("P1: proposal is not [amount, currency, ?text] or [text]")
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
		return cbor.AppendText(cbor.AppendArray(b, 1), p.Text)
	case p.Text == "":
		return appendAmount(cbor.AppendArray(b, 2), *p.Amount)
	default:
		return cbor.AppendText(appendAmount(cbor.AppendArray(b, 3), *p.Amount), p.Text)
	}
}

func appendAmount(b []byte, a protocol.Amount) []byte {
	return cbor.AppendText(cbor.AppendUint(b, a.Minor), a.Currency)
}

func parseAmount(parts [][]byte) (*protocol.Amount, error) {
	if len(parts) != 2 {
		return nil, protocol.CodeFormat.Errorf("amount is not [minor units, currency]")
	}
	minor, err := cbor.Uint(parts[0])
	if err != nil {
		return nil, protocol.CodeFormat.Errorf("amount: %v", err)
	}
	currency, err := cbor.Text(parts[1])
	if err != nil {
		return nil, protocol.CodeFormat.Errorf("currency: %v", err)
	}
	a := protocol.Amount{Minor: minor, Currency: currency}
	return &a, a.Validate()
}

// parseText reads a text. An empty one is left out, and so not a good one here.
func parseText(item []byte) (string, error) {
	s, err := cbor.Text(item)
	if err != nil {
		return "", protocol.CodeFormat.Errorf("text: %v", err)
	}
	if s == "" {
		return "", protocol.CodeFormat.Errorf("an empty text is left out")
	}
	return s, CheckText(s, MaxTextBytes)
}

// P3 is the payload of M3, the countersignature.
type P3 struct {
	Verdict   protocol.Verdict
	Signature [protocol.SignatureSize]byte
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
	m := cbor.NewMap(96)
	m.Uint(1, uint64(p.Verdict))
	m.Bytes(2, p.Signature[:])
	if p.Proof != nil {
		m.Bytes(3, p.Proof)
	}
	if p.Slot == protocol.SlotUV {
		m.Uint(4, p.Slot)
	}
	return m.Encode()
}

// ParseP3 decodes a P3. Errors are [CodeFormat].
func ParseP3(b []byte) (P3, error) {
	m := cbor.ParseMap(b)
	p := P3{Slot: protocol.SlotSigning}
	p.Verdict = protocol.Verdict(m.Uint(1, uint64(protocol.Approve)))
	m.Fixed(2, p.Signature[:])
	if m.Has(3) {
		p.Proof = bytes.Clone(m.Bytes(3))
	}
	slot := m.OptionalUint(4)
	if err := m.Close(); err != nil {
		return P3{}, protocol.CodeFormat.Errorf("P3: %v", err)
	}
	if p.Proof != nil && len(p.Proof) != ProofSize {
		return P3{}, protocol.CodeFormat.Errorf("P3: proof of %d bytes, want %d", len(p.Proof), ProofSize)
	}
	if slot != nil {
		if p.Slot = *slot; p.Slot != protocol.SlotUV {
			return P3{}, protocol.CodeFormat.Errorf("P3: slot %d is not written", p.Slot)
		}
	}
	if p.Verdict == protocol.Refuse && (p.Slot != protocol.SlotSigning || p.Proof != nil) {
		return P3{}, protocol.CodeFormat.Errorf("P3: a refusal has slot 1 and no proof")
	}
	return p, nil
}

// P2 is the payload of M2, the information to be signed. Code 0 is the usual
// form; any other the error form, which has Code and Retry only.
type P2 struct {
	// TTL is the life of the challenge in seconds, from the first byte of M1.
	TTL uint64
	// Now is S's Unix time. C's clock does not follow it.
	Now        uint32
	Level      protocol.Level
	Factors    protocol.Factors
	Device     protocol.DeviceHandle
	DeviceName string
	Amount     *protocol.Amount
	Text       string
	// FirstStatement and FirstService are of the first client's STMT; with
	// [ServiceCoApproval] both, else neither.
	FirstStatement *[32]byte
	FirstService   *protocol.Service

	Code protocol.Code
	// Retry is in seconds.
	Retry *uint64
}

// Marshal gives the canonical encoding of a P2.
func (p P2) Marshal() []byte {
	m := cbor.NewMap(160)
	if p.Code != 0 {
		m.Uint(0, uint64(p.Code))
		m.OptionalUint(1, p.Retry)
		return m.Encode()
	}
	m.Uint(1, p.TTL)
	m.Uint(2, uint64(p.Now))
	m.Uint(3, uint64(p.Level))
	m.Uint(4, uint64(p.Factors))
	m.Bytes(5, p.Device[:])
	m.Text(6, p.DeviceName)
	if p.Amount != nil {
		m.Item(7, appendAmount(cbor.AppendArray(nil, 2), *p.Amount))
	}
	if p.Text != "" {
		m.Text(8, p.Text)
	}
	if p.FirstStatement != nil {
		m.Bytes(12, p.FirstStatement[:])
	}
	if p.FirstService != nil {
		m.Uint(13, uint64(*p.FirstService))
	}
	return m.Encode()
}

// ParseP2 decodes a P2. Errors are [CodeFormat].
func ParseP2(b []byte) (P2, error) {
	m := cbor.ParseMap(b)
	var p P2
	if m.Has(0) {
		p.Code = protocol.Code(m.Uint(0, math.MaxUint8))
		p.Retry = m.OptionalUint(1)
		if err := m.Close(); err != nil {
			return P2{}, protocol.CodeFormat.Errorf("P2: %v", err)
		}
		if p.Code == 0 {
			return P2{}, protocol.CodeFormat.Errorf("P2: code 0 is no error")
		}
		return p, nil
	}
	p.TTL = m.Uint(1, math.MaxUint64)
	p.Now = uint32(m.Uint(2, math.MaxUint32))
	p.Level = protocol.Level(m.Uint(3, math.MaxUint8))
	p.Factors = protocol.Factors(m.Uint(4, math.MaxUint8))
	m.Fixed(5, p.Device[:])
	p.DeviceName = m.Text(6)
	amount, words := m.Item(7), m.Item(8)
	p.parseFirst(m)
	if err := m.Close(); err != nil {
		return P2{}, protocol.CodeFormat.Errorf("P2: %v", err)
	}
	return p, p.parseShown(amount, words)
}

func (p *P2) parseFirst(m *cbor.Map) {
	if !m.Has(12) && !m.Has(13) {
		return
	}
	p.FirstStatement, p.FirstService = new([32]byte), new(protocol.Service)
	m.Fixed(12, p.FirstStatement[:])
	*p.FirstService = protocol.Service(m.Uint(13, math.MaxUint64))
}

// parseShown takes what the user is shown: name, amount, text.
func (p *P2) parseShown(amount, words []byte) error {
	if err := CheckText(p.DeviceName, MaxNameBytes); err != nil {
		return err
	}
	if amount != nil {
		parts, err := cbor.Array(amount)
		if err != nil {
			return protocol.CodeFormat.Errorf("P2: amount: %v", err)
		}
		if p.Amount, err = parseAmount(parts); err != nil {
			return err
		}
	}
	if words == nil {
		return nil
	}
	var err error
	p.Text, err = parseText(words)
	return err
}

// AskedResult is the outcome of the serial that C asked about (P4.5); a retry
// is no outcome.
type AskedResult struct {
	Result protocol.Result
	Reason protocol.Code
}

// P4 is the payload of M4, the verification result.
type P4 struct {
	Result protocol.Result
	// Reason is 0 with [ResultApproved].
	Reason protocol.Code
	// TriesLeft is always there with [ResultRetry].
	TriesLeft *uint64
	// Decision is the full receipt, or nil.
	Decision []byte
	Asked    *AskedResult
	// Retry is in seconds, with [CodeLocked].
	Retry *uint64
}

// Marshal gives the canonical encoding of a P4.
func (p P4) Marshal() []byte {
	m := cbor.NewMap(16 + len(p.Decision))
	m.Uint(1, uint64(p.Result))
	m.Uint(2, uint64(p.Reason))
	m.OptionalUint(3, p.TriesLeft)
	if p.Decision != nil {
		m.Bytes(4, p.Decision)
	}
	if p.Asked != nil {
		pair := cbor.AppendUint(cbor.AppendArray(nil, 2), uint64(p.Asked.Result))
		m.Item(5, cbor.AppendUint(pair, uint64(p.Asked.Reason)))
	}
	m.OptionalUint(6, p.Retry)
	return m.Encode()
}

// ParseP4 decodes a P4. Errors are [CodeFormat].
func ParseP4(b []byte) (P4, error) {
	m := cbor.ParseMap(b)
	var p P4
	p.Result = protocol.Result(m.Uint(1, uint64(protocol.ResultPending)))
	p.Reason = protocol.Code(m.Uint(2, math.MaxUint8))
	p.TriesLeft = m.OptionalUint(3)
	if m.Has(4) {
		p.Decision = bytes.Clone(m.Bytes(4))
	}
	asked := m.Item(5)
	p.Retry = m.OptionalUint(6)
	if err := m.Close(); err != nil {
		return P4{}, protocol.CodeFormat.Errorf("P4: %v", err)
	}
	if p.Result == protocol.ResultApproved && p.Reason != 0 {
		return P4{}, protocol.CodeFormat.Errorf("P4: approved with reason %d", p.Reason)
	}
	if p.Result == protocol.ResultRetry && p.TriesLeft == nil {
		return P4{}, protocol.CodeFormat.Errorf("P4: a retry without tries left")
	}
	return p, p.parseAsked(asked)
}

func (p *P4) parseAsked(item []byte) error {
	if item == nil {
		return nil
	}
	parts, err := cbor.Array(item)
	if err != nil || len(parts) != 2 {
		return protocol.CodeFormat.Errorf("P4: outcome is not [result, reason]")
	}
	result, err := cbor.Uint(parts[0])
	if err != nil || result > uint64(protocol.ResultPending) || protocol.Result(result) == protocol.ResultRetry {
		return protocol.CodeFormat.Errorf("P4: outcome %d is none", result)
	}
	reason, err := cbor.Uint(parts[1])
	if err != nil || reason > math.MaxUint8 || protocol.Result(result) == protocol.ResultApproved && reason != 0 {
		return protocol.CodeFormat.Errorf("P4: outcome %d with reason %d", result, reason)
	}
	p.Asked = &AskedResult{Result: protocol.Result(result), Reason: protocol.Code(reason)}
	return nil
}
