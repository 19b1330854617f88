package protocol

import (
	"context"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Decision is what S decided, for D to act on, PROTOCOL.md §3.1. It travels as
//
//	COSE_Sign1 by decision, {4: kid}, external_aad "OA1 decision v1", payload
//	{1: result, 2: SHA-256(STMT), 3: transaction id, 4: level, 5: factors, 6: issued-at,
//	 7: lifetime, 8: device id, 9: service, ?10: [amount, currency], 11: pairwise id,
//	 12: reason, 13: policy hash, ?14: STMT, ?15: client certificate,
//	 ?16: [decision, slot, signature, proof or h''], 17: u, ?18: SHA-256(second STMT)}
//
// or as a leaf of a batch receipt, §6.
type Decision struct {
	Result          Result        `cbor:"1,keyasint"` // ResultRetry has no decision
	Statement       [32]byte      `cbor:"2,keyasint"`
	Transaction     TransactionID `cbor:"3,keyasint"`
	Level           Level         `cbor:"4,keyasint"`
	Factors         Factors       `cbor:"5,keyasint"` // verified
	IssuedAt        uint64        `cbor:"6,keyasint"` // Unix seconds by S's clock
	Lifetime        uint64        `cbor:"7,keyasint"` // seconds
	Device          DeviceID      `cbor:"8,keyasint"`
	Service         Service       `cbor:"9,keyasint"`
	Amount          *Amount       `cbor:"10,keyasint,omitempty"`
	Pairwise        PairwiseID    `cbor:"11,keyasint"`
	Reason          Code          `cbor:"12,keyasint"` // what D may know: see ReasonFor
	Policy          PolicyHash    `cbor:"13,keyasint"`
	U               Nonce         `cbor:"17,keyasint"`
	SecondStatement *[32]byte     `cbor:"18,keyasint,omitempty"`
	Evidence        []Evidence    `cbor:"-"` // 14 to 16: none, or for strict devices one per STMT
}

// Evidence is a countersignature with what it takes to verify it, for strict
// devices.
type Evidence struct {
	Statement  Statement
	ClientCert []byte
	Approval   Approval
	Signature  [SignatureSize]byte
}

// wireDecision adds the fields of the evidence, which are arrays if there are two.
type wireDecision struct {
	Decision
	Statements  *cbor.RawMessage `cbor:"14,keyasint,omitempty"`
	ClientCerts *cbor.RawMessage `cbor:"15,keyasint,omitempty"`
	Signatures  *cbor.RawMessage `cbor:"16,keyasint,omitempty"`
}

type wireEvidence struct {
	_         struct{} `cbor:",toarray"`
	Verdict   Verdict
	Slot      uint64
	Signature [SignatureSize]byte
	Proof     []byte
}

// ReasonFor is the reason a decision of this result tells the device: 4, 0 or 21
// for denied, approved and pending. Others have no decision.
func ReasonFor(r Result) (reason Code, ok bool) {
	switch r {
	case ResultDenied:
		return CodeRefused, true
	case ResultApproved:
		return 0, true
	case ResultPending:
		return CodePending, true
	}
	return 0, false
}

// Marshal gives the payload, which is also the leaf entry of a batch receipt.
func (d Decision) Marshal() []byte {
	w := wireDecision{Decision: d}
	if len(d.Evidence) == 0 {
		return marshal(w)
	}
	var statements, certs [][]byte
	var signatures []wireEvidence
	for _, e := range d.Evidence {
		statements, certs = append(statements, e.Statement), append(certs, e.ClientCert)
		signatures = append(signatures, wireEvidence{
			Verdict: e.Approval.Verdict, Slot: e.Approval.Slot, Signature: e.Signature, Proof: present(e.Approval.Proof),
		})
	}
	w.Statements, w.ClientCerts, w.Signatures = oneOrAll(statements), oneOrAll(certs), oneOrAll(signatures)
	return marshal(w)
}

func oneOrAll[T any](list []T) *cbor.RawMessage {
	raw := cbor.RawMessage(marshal(list[0]))
	if len(list) > 1 {
		raw = marshal(list)
	}
	return &raw
}

// ParseDecision reads the payload of a decision, which nobody has verified yet:
// CodeFormat.
func ParseDecision(payload []byte) (Decision, error) {
	var w wireDecision
	if err := unmarshalExact(payload, &w, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18); err != nil {
		return Decision{}, err
	}
	d := w.Decision
	if reason, ok := ReasonFor(d.Result); !ok || d.Reason != reason {
		return Decision{}, formatError("decision: %v with reason %d", d.Result, d.Reason)
	}
	if d.Amount != nil {
		if err := d.Amount.validate(); err != nil {
			return Decision{}, err
		}
	}
	var err error
	d.Evidence, err = w.evidence()
	return d, err
}

func (w wireDecision) evidence() ([]Evidence, error) {
	if w.Statements == nil && w.ClientCerts == nil && w.Signatures == nil {
		return nil, nil
	}
	count := 1
	if w.SecondStatement != nil {
		count = 2
	}
	statements, err := readCount[[]byte](w.Statements, count)
	if err != nil {
		return nil, err
	}
	certs, err := readCount[[]byte](w.ClientCerts, count)
	if err != nil {
		return nil, err
	}
	signatures, err := readCount[wireEvidence](w.Signatures, count)
	if err != nil {
		return nil, err
	}
	list := make([]Evidence, count)
	for i, s := range signatures {
		if list[i], err = s.join(statements[i], certs[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// readCount reads one item, or an array of two.
func readCount[T any](raw *cbor.RawMessage, count int) ([]T, error) {
	if raw == nil {
		return nil, formatError("decision: evidence is not complete")
	}
	if count == 1 {
		list := make([]T, 1)
		return list, unmarshalSame(*raw, &list[0])
	}
	var list []T
	if err := unmarshalSame(*raw, &list); err != nil {
		return nil, err
	}
	if len(list) != count {
		return nil, formatError("decision: evidence of %d, want %d", len(list), count)
	}
	return list, nil
}

func (w wireEvidence) join(statement, cert []byte) (Evidence, error) {
	e := Evidence{Statement: statement, ClientCert: cert, Signature: w.Signature}
	if w.Verdict > Approve || w.Slot != SlotSigning && w.Slot != SlotUV {
		return e, formatError("decision: evidence of %v with slot %d", w.Verdict, w.Slot)
	}
	if w.Proof == nil || statement == nil || cert == nil || len(w.Proof) != 0 && len(w.Proof) != ProofSize {
		return e, formatError("decision: evidence has a member of another type or length")
	}
	e.Approval = Approval{Verdict: w.Verdict, Slot: w.Slot}
	if len(w.Proof) != 0 {
		e.Approval.Proof = w.Proof
	}
	return e, nil
}

// SignDecision makes the plain form; signer is the key `decision` of this epoch.
func SignDecision(ctx context.Context, signer DigestSigner, epoch uint64, d Decision) ([]byte, error) {
	b, err := sign1(ctx, signer, domainDecision, d.Marshal(), kidOf(epoch))
	if err != nil {
		return nil, fmt.Errorf("signing decision %v: %w", d.Transaction, err)
	}
	return b, nil
}
