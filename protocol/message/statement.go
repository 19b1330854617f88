package message

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/domain"
)

// Statement is the encoded information that the client signs, STMT: deterministic CBOR ["OA1
// statement v1", root_id, bstr(P1), chal, bstr(P2)].
type Statement []byte

// NewStatement returns the statement of these parts. p1 and p2 are the bytes as sent.
func NewStatement(root protocol.RootID, p1 []byte, chal protocol.Challenge, p2 []byte) Statement {
	b := make([]byte, 0, statementOverhead+len(p1)+len(p2))
	b = cbor.AppendText(cbor.AppendArray(b, 5), domain.Statement)
	b = cbor.AppendBytes(cbor.AppendBytes(b, root[:]), p1)
	return cbor.AppendBytes(cbor.AppendBytes(b, chal[:]), p2)
}

// statementOverhead covers the array head, the domain string, root_id, chal, and up to 3 bytes of
// head before P1 and P2.
const statementOverhead = 64

// Hash returns SHA-256(STMT).
func (s Statement) Hash() [32]byte { return sha256.Sum256(s) }

func (s Statement) String() string { return hex.EncodeToString(s) }

// StatementFields are the decoded parts of a [Statement], and P1 and P2 as received.
type StatementFields struct {
	Root      protocol.RootID
	P1        P1
	Challenge protocol.Challenge
	P2        P2

	RawP1, RawP2 []byte
}

// ParseStatement decodes a statement and its payloads. Errors are CodeFormat, also for a P2 in the
// error form.
func ParseStatement(b []byte) (StatementFields, error) {
	var w wireStatement
	err := cbor.Unmarshal(b, &w)
	f := StatementFields{Root: w.Root, Challenge: w.Challenge, RawP1: w.P1, RawP2: w.P2}
	switch {
	case err != nil:
		return f, protocol.CodeFormat.Errorf("statement: %v", err)
	case w.Domain != domain.Statement || w.P1 == nil || w.P2 == nil:
		return f, protocol.CodeFormat.Errorf("statement: want [%q, root id, P1, challenge, P2]", domain.Statement)
	}
	if f.P1, err = ParseP1(f.RawP1); err != nil {
		return f, fmt.Errorf("statement: %w", err)
	}
	if f.P2, err = ParseP2(f.RawP2); err != nil {
		return f, fmt.Errorf("statement: %w", err)
	}
	if f.P2.Code != 0 {
		return f, protocol.CodeFormat.Errorf("statement: P2 is an error")
	}
	return f, nil
}

type wireStatement struct {
	_         struct{} `cbor:",toarray"`
	Domain    string
	Root      protocol.RootID
	P1        []byte
	Challenge protocol.Challenge
	P2        []byte
}

// Approval is the part of a countersignature besides the statement.
type Approval struct {
	Verdict protocol.Verdict
	// Slot is [protocol.SlotSigning] or [protocol.SlotUV].
	Slot uint64
	// Proof is the password proof, or nil.
	Proof []byte
}

// sigStructure returns the Sig_structure (RFC 9052 §4.4) of a countersignature, with the detached
// payload [bstr(STMT), decision, slot, proof].
func (s Statement) sigStructure(a Approval) []byte {
	return protocol.SigStructure(domain.Countersign, s.payload(a))
}

func (s Statement) payload(a Approval) []byte {
	b := make([]byte, 0, len(s)+len(a.Proof)+payloadOverhead)
	b = cbor.AppendBytes(cbor.AppendArray(b, 4), s)
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(a.Verdict)), a.Slot)
	return cbor.AppendBytes(b, a.Proof)
}

const payloadOverhead = 24

// Countersign signs a statement with the client's key of a.Slot.
func Countersign(ctx context.Context, signer protocol.DigestSigner, s Statement, a Approval) (sig [protocol.SignatureSize]byte, err error) {
	digest := sha256.Sum256(s.sigStructure(a))
	b, err := signer.SignDigest(ctx, digest[:])
	if err != nil {
		return sig, fmt.Errorf("countersigning: %w", err)
	}
	if len(b) != protocol.SignatureSize {
		return sig, fmt.Errorf("countersigning: signature of %d bytes, want %d", len(b), protocol.SignatureSize)
	}
	return [protocol.SignatureSize]byte(b), nil
}

// VerifyCountersign verifies a countersignature with the client's key of a.Slot. An invalid one of
// any length is [protocol.CodeSignature].
func VerifyCountersign(key protocol.PublicKey, s Statement, a Approval, sig []byte) error {
	digest := sha256.Sum256(s.sigStructure(a))
	if !key.VerifyDigest(digest[:], sig) {
		return protocol.CodeSignature
	}
	return nil
}

// Expectation is the client's request and settings, which [P2.Acceptable] compares a P2 with.
type Expectation struct {
	// Service is the service in P1.
	Service protocol.Service
	// Requested is the level in P1.
	Requested protocol.Level
	// Floor returns the client's lowest level for a service; nil means 1.
	Floor func(protocol.Service) protocol.Level
	// Amount and Text are the client's proposal; nil and "" mean none.
	Amount *protocol.Amount
	Text   string
}

// Acceptable returns nil if the client may show this P2 and let the user sign it (PROTOCOL.md §4).
// For the error form it returns P2's own code, as [protocol.Retry] if P2 has a retry time. Other
// errors are CodeFormat for misplaced co-approval members, CodeLevel for an insufficient level or
// wrong factors, and CodePolicy for an amount or text that differs from the proposal or an unknown
// currency.
func (p P2) Acceptable(want Expectation) error {
	if p.Code != 0 {
		return p.refusal()
	}
	if (want.Service == protocol.ServiceCoApproval) != (p.FirstStatement != nil) {
		return protocol.CodeFormat.Errorf("P2: service 3 needs a first statement, other services must not have one")
	}
	if err := p.checkLevel(want); err != nil {
		return err
	}
	return p.checkContent(want)
}

func (p P2) refusal() error {
	if p.Retry == nil {
		return p.Code
	}
	return protocol.Retry{Code: p.Code, After: protocol.Seconds(*p.Retry)}
}

func (p P2) checkLevel(want Expectation) error {
	service := want.Service
	if service == protocol.ServiceCoApproval {
		service = *p.FirstService
	}
	floor := protocol.Level(1)
	if want.Floor != nil {
		floor = want.Floor(service)
	}
	if least := max(floor, want.Requested); p.Level < least {
		return fmt.Errorf("level %v, want %v or more: %w", p.Level, least, protocol.CodeLevel)
	}
	needed, ok := p.Level.Factors()
	if !ok || !p.Factors.Has(needed) || !protocol.KnownFactors.Has(p.Factors) {
		return fmt.Errorf("level %v with factors %v: %w", p.Level, p.Factors, protocol.CodeLevel)
	}
	return nil
}

func (p P2) checkContent(want Expectation) error {
	if p.Amount != nil {
		if _, known := protocol.MinorDigits(p.Amount.Currency); !known {
			return fmt.Errorf("unknown currency %v: %w", p.Amount.Currency, protocol.CodePolicy)
		}
	}
	if want.Amount != nil && (p.Amount == nil || *p.Amount != *want.Amount) {
		return fmt.Errorf("amount %v, proposed %v: %w", p.Amount, want.Amount, protocol.CodePolicy)
	}
	if want.Text != "" && p.Text != want.Text {
		return fmt.Errorf("text %q, proposed %q: %w", p.Text, want.Text, protocol.CodePolicy)
	}
	return nil
}
