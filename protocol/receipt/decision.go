// Package receipt implements decisions: their payload, their signature, alone or
// with many in one batch receipt, and the checks of a device (PROTOCOL.md §3.1, §6).
package receipt

import (
	"context"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/cose"
	"countersign/protocol/internal/domain"
	"countersign/protocol/internal/strict"
	"countersign/protocol/message"
)

// Decision is the appliance's decision, for the device to act on, PROTOCOL.md §3.1. It travels as
//
//	COSE_Sign1 by decision, {4: kid}, external_aad "OA1 decision v1", payload
//	{1: result, 2: SHA-256(STMT), 3: transaction id, 4: level, 5: factors, 6: issued-at,
//	 7: lifetime, 8: device id, 9: service, ?10: [amount, currency], 11: pairwise id,
//	 12: reason, 13: policy hash, ?14: STMT, ?15: client certificate,
//	 ?16: [decision, slot, signature, proof or h''], 17: u, ?18: SHA-256(second STMT)}
//
// or as a leaf of a batch receipt, §6.
type Decision struct {
	Result          protocol.Result        `cbor:"1,keyasint"` // never ResultRetry
	Statement       [32]byte               `cbor:"2,keyasint"`
	Transaction     protocol.TransactionID `cbor:"3,keyasint"`
	Level           protocol.Level         `cbor:"4,keyasint"`
	Factors         protocol.Factors       `cbor:"5,keyasint"` // verified
	IssuedAt        uint64                 `cbor:"6,keyasint"` // Unix seconds by the appliance's clock
	Lifetime        uint64                 `cbor:"7,keyasint"` // seconds
	Device          protocol.DeviceID      `cbor:"8,keyasint"`
	Service         protocol.Service       `cbor:"9,keyasint"`
	Amount          *protocol.Amount       `cbor:"10,keyasint,omitempty"`
	Pairwise        protocol.PairwiseID    `cbor:"11,keyasint"`
	Reason          protocol.Code          `cbor:"12,keyasint"` // for the device: see ReasonFor
	Policy          protocol.PolicyHash    `cbor:"13,keyasint"`
	U               protocol.Nonce         `cbor:"17,keyasint"`
	SecondStatement *[32]byte              `cbor:"18,keyasint,omitempty"`
	Evidence        []Evidence             `cbor:"-"` // 14 to 16: one per statement for strict devices, otherwise none
}

// Evidence is a countersignature with everything that verifies it, for strict devices.
type Evidence struct {
	Statement  message.Statement
	ClientCert []byte
	Approval   message.Approval
	Signature  [protocol.SignatureSize]byte
}

// wireDecision adds the members of the evidence, which are arrays if there are two.
type wireDecision struct {
	Decision
	Statements  *cbor.RawMessage `cbor:"14,keyasint,omitempty"`
	ClientCerts *cbor.RawMessage `cbor:"15,keyasint,omitempty"`
	Signatures  *cbor.RawMessage `cbor:"16,keyasint,omitempty"`
}

type wireEvidence struct {
	_         struct{} `cbor:",toarray"`
	Verdict   protocol.Verdict
	Slot      uint64
	Signature [protocol.SignatureSize]byte
	Proof     []byte
}

// ReasonFor returns the reason in a decision of this result: 4 for denied, 0 for approved, 21 for
// pending. Other results have no decision.
func ReasonFor(r protocol.Result) (reason protocol.Code, ok bool) {
	switch r {
	case protocol.ResultDenied:
		return protocol.CodeRefused, true
	case protocol.ResultApproved:
		return 0, true
	case protocol.ResultPending:
		return protocol.CodePending, true
	}
	return 0, false
}

// Marshal returns the payload, which is also the leaf entry of a batch receipt.
func (d Decision) Marshal() []byte {
	w := wireDecision{Decision: d}
	if len(d.Evidence) == 0 {
		return cbor.Marshal(w)
	}
	var statements, certs [][]byte
	var signatures []wireEvidence
	for _, e := range d.Evidence {
		statements, certs = append(statements, e.Statement), append(certs, e.ClientCert)
		signatures = append(signatures, wireEvidence{
			Verdict: e.Approval.Verdict, Slot: e.Approval.Slot, Signature: e.Signature, Proof: strict.NonNil(e.Approval.Proof),
		})
	}
	w.Statements, w.ClientCerts, w.Signatures = oneOrAll(statements), oneOrAll(certs), oneOrAll(signatures)
	return cbor.Marshal(w)
}

func oneOrAll[T any](list []T) *cbor.RawMessage {
	raw := cbor.RawMessage(cbor.Marshal(list[0]))
	if len(list) > 1 {
		raw = cbor.Marshal(list)
	}
	return &raw
}

// Parse decodes the unverified payload of a decision. Errors are CodeFormat.
func Parse(payload []byte) (Decision, error) {
	var w wireDecision
	if err := strict.Map(payload, &w); err != nil {
		return Decision{}, err
	}
	d := w.Decision
	if reason, ok := ReasonFor(d.Result); !ok || d.Reason != reason {
		return Decision{}, protocol.CodeFormat.Errorf("decision: %v with reason %d", d.Result, d.Reason)
	}
	if d.Amount != nil {
		if err := d.Amount.Validate(); err != nil {
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

// readCount decodes one item, or an array of two.
func readCount[T any](raw *cbor.RawMessage, count int) ([]T, error) {
	if raw == nil {
		return nil, protocol.CodeFormat.Errorf("decision: evidence is not complete")
	}
	if count == 1 {
		list := make([]T, 1)
		return list, strict.Item(*raw, &list[0])
	}
	var list []T
	if err := strict.Item(*raw, &list); err != nil {
		return nil, err
	}
	if len(list) != count {
		return nil, protocol.CodeFormat.Errorf("decision: evidence of %d, want %d", len(list), count)
	}
	return list, nil
}

func (w wireEvidence) join(statement, cert []byte) (Evidence, error) {
	e := Evidence{Statement: statement, ClientCert: cert, Signature: w.Signature}
	if w.Verdict > protocol.Approve || w.Slot != protocol.SlotSigning && w.Slot != protocol.SlotUV {
		return e, protocol.CodeFormat.Errorf("decision: evidence of %v with slot %d", w.Verdict, w.Slot)
	}
	if w.Proof == nil || statement == nil || cert == nil || len(w.Proof) != 0 && len(w.Proof) != message.ProofSize {
		return e, protocol.CodeFormat.Errorf("decision: evidence has a member of the wrong type or length")
	}
	e.Approval = message.Approval{Verdict: w.Verdict, Slot: w.Slot}
	if len(w.Proof) != 0 {
		e.Approval.Proof = w.Proof
	}
	return e, nil
}

// Sign returns the plain form, signed by the key `decision` of this epoch.
func Sign(ctx context.Context, signer protocol.DigestSigner, epoch uint64, d Decision) ([]byte, error) {
	b, err := cose.Sign(ctx, signer, domain.Decision, d.Marshal(), cose.Kid(epoch))
	if err != nil {
		return nil, fmt.Errorf("signing decision %v: %w", d.Transaction, err)
	}
	return b, nil
}
