package message

import (
	"bytes"
	"errors"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/text"
)

// Limits of names and texts, in bytes of UTF-8.
const (
	MaxNameBytes = 24
	MaxTextBytes = 44
)

// CheckText applies the rules for names and texts that users see (PROTOCOL.md §3) and a limit in
// bytes. Errors are CodeFormat.
func CheckText(s string, maxBytes int) error {
	if len(s) > maxBytes {
		return protocol.CodeFormat.Errorf("text of %d bytes, limit %d", len(s), maxBytes)
	}
	if err := text.Check(s); err != nil {
		return protocol.CodeFormat.Errorf("%v", err)
	}
	return nil
}

// CapabilityFullReceipt is the bit of P1.7 that requests the decision in P4.4.
const CapabilityFullReceipt = 1

// Proposal is the client's own proposal (P1.5): an amount, a text, or both.
type Proposal struct {
	Amount *protocol.Amount
	Text   string
}

// P1 is the payload of M1, the request.
type P1 struct {
	Client       protocol.ClientID `cbor:"1,keyasint"`
	Serial       protocol.Serial   `cbor:"2,keyasint"`
	Service      protocol.Service  `cbor:"3,keyasint"`
	Level        protocol.Level    `cbor:"4,keyasint"` // the lowest acceptable; any number below 256 decodes
	Proposal     *Proposal         `cbor:"-"`
	Capabilities uint64            `cbor:"7,keyasint,omitempty"`
	// Asked is the serial of an earlier request. Requests for [protocol.ServiceStatus]
	// have one, others none.
	Asked *protocol.Serial `cbor:"8,keyasint,omitempty"`
}

type wireP1 struct {
	P1
	Proposal cbor.RawMessage `cbor:"5,keyasint,omitempty"`
}

// The forms of a proposal.
type (
	proposalText struct {
		_    struct{} `cbor:",toarray"`
		Text string
	}
	proposalBoth struct {
		_        struct{} `cbor:",toarray"`
		Minor    uint64
		Currency string
		Text     string
	}
)

// Marshal returns the canonical encoding.
func (p P1) Marshal() []byte {
	w := wireP1{P1: p}
	if p.Proposal != nil {
		w.Proposal = p.Proposal.marshal()
	}
	return cbor.Marshal(w)
}

// ParseP1 decodes a P1. Errors are CodeFormat.
func ParseP1(b []byte) (P1, error) {
	var w wireP1
	if err := cbor.UnmarshalMap(b, &w); err != nil {
		return P1{}, protocol.CodeFormat.Errorf("P1: %v", err)
	}
	p := w.P1
	if (p.Service == protocol.ServiceStatus) != (p.Asked != nil) {
		return P1{}, protocol.CodeFormat.Errorf("P1: service 2 needs a serial, other services must not have one")
	}
	if w.Proposal == nil {
		return p, nil
	}
	proposal, err := parseProposal(w.Proposal)
	p.Proposal = &proposal
	return p, err
}

func (p Proposal) marshal() []byte {
	switch {
	case p.Amount == nil:
		return cbor.Marshal(proposalText{Text: p.Text})
	case p.Text == "":
		return cbor.Marshal(p.Amount)
	}
	return cbor.Marshal(proposalBoth{Minor: p.Amount.Minor, Currency: p.Amount.Currency, Text: p.Text})
}

func parseProposal(item []byte) (p Proposal, err error) {
	var text proposalText
	var both proposalBoth
	switch item[0] {
	case arrayOf + 1:
		err = cbor.Unmarshal(item, &text)
		both.Text = text.Text
	case arrayOf + 2:
		p.Amount = &protocol.Amount{}
		err = cbor.Unmarshal(item, p.Amount)
	case arrayOf + 3:
		err = cbor.Unmarshal(item, &both)
		p.Amount = &protocol.Amount{Minor: both.Minor, Currency: both.Currency}
	default:
		err = errors.New("want [amount, currency, ?text] or [text]")
	}
	if err != nil {
		return p, protocol.CodeFormat.Errorf("P1: proposal: %v", err)
	}
	if p.Amount != nil {
		if err := p.Amount.Validate(); err != nil {
			return p, err
		}
	}
	if item[0] == arrayOf+2 {
		return p, nil
	}
	if p.Text = both.Text; p.Text == "" {
		return p, protocol.CodeFormat.Errorf("P1: an empty text must be left out")
	}
	return p, CheckText(p.Text, MaxTextBytes)
}

// arrayOf is the head of an empty array.
const arrayOf = 0x80

// P3 is the payload of M3, the countersignature.
type P3 struct {
	Verdict   protocol.Verdict             `cbor:"1,keyasint"`
	Signature [protocol.SignatureSize]byte `cbor:"2,keyasint"`
	Proof     []byte                       `cbor:"3,keyasint,omitempty"` // the 16-byte password proof, or nil
	Slot      uint64                       `cbor:"4,keyasint,omitempty"` // SlotSigning, which is not written, or SlotUV
}

// ProofSize is the length of a password proof.
const ProofSize = 16

// Approval returns the members that the signature covers.
func (p P3) Approval() Approval { return Approval{Verdict: p.Verdict, Slot: p.Slot, Proof: p.Proof} }

// Marshal returns the canonical encoding.
func (p P3) Marshal() []byte {
	if p.Slot != protocol.SlotUV {
		p.Slot = 0
	}
	return cbor.Marshal(p)
}

// ParseP3 decodes a P3. Errors are CodeFormat.
func ParseP3(b []byte) (p P3, err error) {
	if err := cbor.UnmarshalMap(b, &p); err != nil {
		return P3{}, protocol.CodeFormat.Errorf("P3: %v", err)
	}
	switch {
	case p.Verdict > protocol.Approve:
		return P3{}, protocol.CodeFormat.Errorf("P3: %v", p.Verdict)
	case p.Proof != nil && len(p.Proof) != ProofSize:
		return P3{}, protocol.CodeFormat.Errorf("P3: proof of %d bytes, want %d", len(p.Proof), ProofSize)
	case p.Slot != 0 && p.Slot != protocol.SlotUV:
		return P3{}, protocol.CodeFormat.Errorf("P3: slot %d: want 3, or none for slot 1", p.Slot)
	case p.Verdict == protocol.Refuse && (p.Slot != 0 || p.Proof != nil):
		return P3{}, protocol.CodeFormat.Errorf("P3: a refusal has slot 1 and no proof")
	}
	p.Slot = max(p.Slot, protocol.SlotSigning)
	return p, nil
}

// P2 is the payload of M2, the information to be signed. If Code is not 0 it is the
// error form, which has Code and Retry only.
type P2 struct {
	TTL        uint64                `cbor:"1,keyasint"` // of the challenge in seconds, from the first byte of M1
	Now        uint32                `cbor:"2,keyasint"` // the appliance's Unix time; clients do not set their clock by it
	Level      protocol.Level        `cbor:"3,keyasint"`
	Factors    protocol.Factors      `cbor:"4,keyasint"`
	Device     protocol.DeviceHandle `cbor:"5,keyasint"`
	DeviceName string                `cbor:"6,keyasint"`
	Amount     *protocol.Amount      `cbor:"7,keyasint,omitempty"`
	Text       string                `cbor:"8,keyasint,omitempty"`
	// FirstStatement and FirstService are the hash of the first client's statement and
	// its service. They are present with [protocol.ServiceCoApproval] only.
	FirstStatement *[32]byte         `cbor:"12,keyasint,omitempty"`
	FirstService   *protocol.Service `cbor:"13,keyasint,omitempty"`

	Code  protocol.Code `cbor:"-"`
	Retry *uint64       `cbor:"-"` // seconds
}

type wireRefusal struct {
	Code  protocol.Code `cbor:"0,keyasint"`
	Retry *uint64       `cbor:"1,keyasint,omitempty"`
}

// Marshal returns the canonical encoding.
func (p P2) Marshal() []byte {
	if p.Code != 0 {
		return cbor.Marshal(wireRefusal{p.Code, p.Retry})
	}
	return cbor.Marshal(p)
}

// ParseP2 decodes a P2. Errors are CodeFormat.
func ParseP2(b []byte) (p P2, err error) {
	if len(b) > 1 && b[1] == 0 { // the first key
		var w wireRefusal
		if err := cbor.UnmarshalMap(b, &w); err != nil {
			return P2{}, protocol.CodeFormat.Errorf("P2: %v", err)
		}
		if w.Code == 0 {
			return P2{}, protocol.CodeFormat.Errorf("P2: the error form has code 0")
		}
		return P2{Code: w.Code, Retry: w.Retry}, nil
	}
	if err := cbor.UnmarshalMap(b, &p); err != nil {
		return P2{}, protocol.CodeFormat.Errorf("P2: %v", err)
	}
	if (p.FirstStatement == nil) != (p.FirstService == nil) {
		return P2{}, protocol.CodeFormat.Errorf("P2: first statement and first service must come together")
	}
	if err := CheckText(p.DeviceName, MaxNameBytes); err != nil {
		return p, err
	}
	if p.Amount != nil {
		if err := p.Amount.Validate(); err != nil {
			return p, err
		}
	}
	return p, CheckText(p.Text, MaxTextBytes)
}

// AskedResult is the outcome of the request that the client asked about (P4.5). It is
// never [protocol.ResultRetry].
type AskedResult struct {
	_      struct{} `cbor:",toarray"`
	Result protocol.Result
	Reason protocol.Code
}

// P4 is the payload of M4, the result.
type P4 struct {
	Result    protocol.Result `cbor:"1,keyasint"`
	Reason    protocol.Code   `cbor:"2,keyasint"`           // 0 with ResultApproved
	TriesLeft *uint64         `cbor:"3,keyasint,omitempty"` // always present with ResultRetry
	Decision  []byte          `cbor:"-"`                    // the full receipt, or nil
	Asked     *AskedResult    `cbor:"5,keyasint,omitempty"`
	Retry     *uint64         `cbor:"6,keyasint,omitempty"` // seconds, with CodeLocked
	// Performed is what the device reported about the act of the approval asked about; nil: nothing yet.
	// Only an answer with an approval in Asked has it.
	Performed *bool `cbor:"-"`
}

type wireP4 struct {
	P4
	Decision  *[]byte         `cbor:"4,keyasint,omitempty"`
	Performed cbor.RawMessage `cbor:"64,keyasint,omitempty"`
}

// Marshal returns the canonical encoding.
func (p P4) Marshal() []byte {
	w := wireP4{P4: p}
	if p.Decision != nil {
		w.Decision = &p.Decision
	}
	if p.Performed != nil {
		w.Performed = performedNo
	}
	if p.Performed != nil && *p.Performed {
		w.Performed = performedYes
	}
	return cbor.Marshal(w)
}

// The values of P4.64: the integers 0 and 1.
var performedNo, performedYes = cbor.RawMessage{0}, cbor.RawMessage{1}

// performed returns the value of P4.64. A value that means nothing, or one beside another answer, is ignored
// as other keys from 64 on are.
func (w wireP4) performed() *bool {
	yes := bytes.Equal(w.Performed, performedYes)
	isKnown := yes || bytes.Equal(w.Performed, performedNo)
	if !isKnown || w.Result != protocol.ResultApproved || w.Asked == nil || w.Asked.Result != protocol.ResultApproved {
		return nil
	}
	return &yes
}

// ParseP4 decodes a P4. Errors are CodeFormat.
func ParseP4(b []byte) (P4, error) {
	var w wireP4
	if err := cbor.UnmarshalMap(b, &w); err != nil {
		return P4{}, protocol.CodeFormat.Errorf("P4: %v", err)
	}
	p := w.P4
	if w.Decision != nil {
		p.Decision = *w.Decision
	}
	p.Performed = w.performed()
	switch {
	case p.Result > protocol.ResultPending, p.Result == protocol.ResultApproved && p.Reason != 0:
		return P4{}, protocol.CodeFormat.Errorf("P4: %v with reason %d", p.Result, p.Reason)
	case p.Result == protocol.ResultRetry && p.TriesLeft == nil:
		return P4{}, protocol.CodeFormat.Errorf("P4: retry without tries left")
	}
	if a := p.Asked; a != nil && (a.Result > protocol.ResultPending || a.Result == protocol.ResultRetry ||
		a.Result == protocol.ResultApproved && a.Reason != 0) {
		return P4{}, protocol.CodeFormat.Errorf("P4: outcome %v with reason %d", a.Result, a.Reason)
	}
	return p, nil
}
