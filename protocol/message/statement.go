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

// Statement is STMT, the information to be signed, encoded: det-CBOR
// ["OA1 statement v1", root_id, bstr(P1), chal, bstr(P2)].
type Statement []byte

// NewStatement joins what the client signs. p1 and p2 are the bytes as sent.
func NewStatement(root protocol.RootID, p1 []byte, chal protocol.Challenge, p2 []byte) Statement {
	b := make([]byte, 0, statementOverhead+len(p1)+len(p2))
	b = cbor.AppendText(cbor.AppendArray(b, 5), domain.Statement)
	b = cbor.AppendBytes(cbor.AppendBytes(b, root[:]), p1)
	return cbor.AppendBytes(cbor.AppendBytes(b, chal[:]), p2)
}

// statementOverhead is the array head, domain string, root_id, chal, and up to 3
// bytes of head before P1 and P2.
const statementOverhead = 64

// Hash is SHA-256(STMT).
func (s Statement) Hash() [32]byte { return sha256.Sum256(s) }

func (s Statement) String() string { return hex.EncodeToString(s) }

// StatementFields are the parts of a [Statement], decoded and as they came.
type StatementFields struct {
	Root      protocol.RootID
	P1        P1
	Challenge protocol.Challenge
	P2        P2

	RawP1, RawP2 []byte
}

// ParseStatement reads a statement and its payloads. Errors are [CodeFormat];
// a P2 of error form is one.
func ParseStatement(b []byte) (StatementFields, error) {
	f, err := splitStatement(b)
	if err != nil {
		return f, protocol.CodeFormat.Errorf("statement: %v", err)
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

func splitStatement(b []byte) (f StatementFields, err error) {
	parts, err := cbor.Array(b)
	if err != nil {
		return f, err
	}
	if len(parts) != 5 {
		return f, fmt.Errorf("%d items, want 5", len(parts))
	}
	if got, err := cbor.Text(parts[0]); err != nil || got != domain.Statement {
		return f, fmt.Errorf("domain string is not %q", domain.Statement)
	}
	for i, dst := range [][]byte{1: f.Root[:], 3: f.Challenge[:]} {
		if dst == nil {
			continue
		}
		v, err := cbor.Bytes(parts[i])
		if err != nil || len(v) != len(dst) {
			return f, fmt.Errorf("item %d is not a byte string of %d", i, len(dst))
		}
		copy(dst, v)
	}
	if f.RawP1, err = cbor.Bytes(parts[2]); err != nil {
		return f, err
	}
	f.RawP2, err = cbor.Bytes(parts[4])
	return f, err
}

// Approval is what the client signs besides the statement.
type Approval struct {
	Verdict protocol.Verdict
	// Slot is [SlotSigning] or [SlotUV].
	Slot uint64
	// Proof is the password proof, or nil.
	Proof []byte
}

// sigStructure is what a countersignature is over: the Sig_structure of
// RFC 9052 §4.4 with the detached payload [bstr(STMT), decision, slot, proof].
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

// VerifyCountersign checks a countersignature with the client's key of a.Slot.
// A bad one, of whatever length, is [CodeSignature].
func VerifyCountersign(key protocol.PublicKey, s Statement, a Approval, sig []byte) error {
	digest := sha256.Sum256(s.sigStructure(a))
	if !key.VerifyDigest(digest[:], sig) {
		return protocol.CodeSignature
	}
	return nil
}

// Expectation is what C asked for and what its own settings say, to hold a P2
// against before its user sees it.
type Expectation struct {
	// Service is that of P1.
	Service protocol.Service
	// Requested is the level of P1.
	Requested protocol.Level
	// Floor is C's own least level for a service; nil is 1 for each.
	Floor func(protocol.Service) protocol.Level
	// Amount and Text are what C proposed, nil or "" where it did not.
	Amount *protocol.Amount
	Text   string
}

// Acceptable tells whether C may show this P2 and let its user sign it
// (PROTOCOL.md §4). The error form is its own code, as [Retry] if it says when.
// Otherwise it is [CodeFormat] for keys of co-approval in the wrong place,
// [CodeLevel] for a level or factors that do not do, [CodePolicy] for an amount or
// text that is not C's, or a currency that C does not know.
func (p P2) Acceptable(want Expectation) error {
	if p.Code != 0 {
		return p.refusal()
	}
	if (want.Service == protocol.ServiceCoApproval) != (p.FirstStatement != nil) {
		return protocol.CodeFormat.Errorf("P2: a first statement goes with service 3 and only there")
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

const knownFactors = protocol.FactorSignature | protocol.FactorPassword | protocol.FactorUV | protocol.FactorSecondApprover | protocol.FactorStrict

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
	if !ok || !p.Factors.Has(needed) || !knownFactors.Has(p.Factors) {
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
