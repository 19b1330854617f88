package store

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/message"
)

// Kinds of audit record.
const (
	KindDecision = "decision" // a serial was spent
	KindRefused  = "refused"  // a countersignature verified and was refused without spending: a wrong password, for one
	KindFinal    = "final"    // a pending decision came to its end
	KindSettled  = "settled"  // a serial was denied because its client asked what became of it
	KindUnlock   = "unlock"   // an administrator set a client's password guard back
	KindFailures = "failures" // countersignatures that did not verify: one record per device and minute
	KindOutcome  = "outcome"  // a device's report
	KindCeremony = "ceremony" // keys and trust made
	KindKeys     = "key"      // a key version was created, certified, activated, retired, …
	KindPolicy   = "policy"   // a policy became active
	KindClients  = "client"   // a client was invited, enrolled or changed
	KindHSM      = "hsm"      // the PIN of a token was given by an administrator
	KindStore    = "store"    // the database was copied, or came back from a copy
	KindDevices  = "device"   // a device was invited, enrolled, renewed or changed
	KindAdmins   = "admin"    // an administrator was added or changed
	KindChanges  = "change"   // a change was requested, countersigned, executed, …
	KindDoctor   = "doctor"   // somebody had the appliance examined
)

// decisionRecord is the body of a decision's audit record, PROTOCOL.md §4:
// det-CBOR of {STMT, countersignature, slot, proof, factors, decision payload,
// policy hash}; 8 is the reason that the client was told, 9 the device's reference,
// 10 what it was told of the serial it asked about: [result, reason].
type decisionRecord struct {
	Statement []byte           `cbor:"1,keyasint"`
	Signature []byte           `cbor:"2,keyasint"`
	Slot      uint64           `cbor:"3,keyasint"`
	Proof     []byte           `cbor:"4,keyasint"`
	Factors   protocol.Factors `cbor:"5,keyasint"`
	Decision  []byte           `cbor:"6,keyasint"`
	Policy    []byte           `cbor:"7,keyasint"`
	Reason    protocol.Code    `cbor:"8,keyasint"`
	Reference string           `cbor:"9,keyasint,omitempty"`
	Asked     []uint64         `cbor:"10,keyasint,omitempty"`
}

var recordMode = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

func encode(v any) []byte {
	b, err := recordMode.Marshal(v)
	if err != nil {
		panic(err) // a type that cannot be encoded: a defect, not input
	}
	return b
}

func (s Spend) record(out Outcome, kind string) *Record {
	d := out.Decision
	return &Record{
		At: Stamp(s.Now), Kind: kind, Subject: "client/" + s.Client.String(), Salt: s.Salt,
		Body: encode(decisionRecord{
			Statement: s.Evidence.Statement,
			Signature: s.Evidence.Signature[:],
			Slot:      s.Evidence.Approval.Slot,
			Proof:     append([]byte{}, s.Evidence.Approval.Proof...),
			Factors:   d.Factors,
			Decision:  d.Marshal(),
			Policy:    d.Policy[:],
			Reason:    out.Reason,
			Reference: s.Evidence.Reference,
			Asked:     askedFields(out.Asked),
		}),
	}
}

func askedFields(a *message.AskedResult) []uint64 {
	if a == nil {
		return nil
	}
	return []uint64{uint64(a.Result), uint64(a.Reason)}
}

// finalRecord is of the end of a pending decision, through s.
func (s Spend) finalRecord(f Finalization) *Record {
	return s.further(KindFinal, f.Client, map[string]any{
		"serial": f.Serial[:], "result": f.Result, "reason": f.Reason, "by": s.Client[:], "by_serial": s.Serial[:],
	})
}

// settledRecord is of a serial that is denied because s asks about it.
func (s Spend) settledRecord(denied Spent) *Record {
	return s.further(KindSettled, denied.Client, map[string]any{
		"serial": denied.Serial[:], "result": denied.Outcome.Result, "reason": denied.Outcome.Reason, "by_serial": s.Serial[:],
	})
}

// further is a second record of the same transaction. Its salt follows from that of
// the first, which tells as much as it does.
func (s Spend) further(kind string, client protocol.ClientID, fields map[string]any) *Record {
	salt := sha256.Sum256(append([]byte(kind), s.Salt[:]...))
	return &Record{
		At: Stamp(s.Now), Kind: kind, Subject: "client/" + client.String(), Salt: [16]byte(salt[:16]), Body: encode(fields),
	}
}

// Refused is the record of a countersignature that verified and is refused with
// this code without spending its serial, such as an attempt at the password that
// was wrong (10): the body is that of the denial it would be.
func (s Spend) Refused(code protocol.Code) Record {
	return *s.record(s.denied(code), KindRefused)
}

// NewRecord makes the record of an administrative change. Fields is encoded as
// a CBOR map with text keys; it must hold no secret.
func NewRecord(kind, subject string, fields map[string]any) Record {
	return Record{At: Stamp(time.Now()), Kind: kind, Subject: subject, Salt: NewSalt(), Body: encode(fields)}
}

// NewSalt is 16 fresh random bytes, so that a leaf hash tells nothing of a
// record that can be guessed.
func NewSalt() (salt [16]byte) {
	_, _ = rand.Read(salt[:]) // never fails, crypto/rand
	return salt
}

// Leaf is the record's entry in the transparency log.
func (r Record) Leaf() [32]byte {
	return sha256.Sum256(append(r.Salt[:], r.Body...))
}

// Words are the record's fields with names, byte strings in hexadecimal.
func (r Record) Words() map[string]any {
	var fields map[any]any
	if err := cbor.Unmarshal(r.Body, &fields); err != nil {
		return map[string]any{"error": err.Error()}
	}
	words := map[string]any{}
	for key, value := range fields {
		words[fieldName(key)] = inWords(value)
	}
	return words
}

var decisionFields = map[uint64]string{
	1: "statement", 2: "signature", 3: "slot", 4: "proof", 5: "factors", 6: "decision", 7: "policy", 8: "reason", 9: "reference", 10: "asked",
}

func fieldName(key any) string {
	if n, ok := key.(uint64); ok && decisionFields[n] != "" {
		return decisionFields[n]
	}
	return fmt.Sprint(key)
}

func inWords(value any) any {
	switch v := value.(type) {
	case []byte:
		return hex.EncodeToString(v)
	case []any:
		words := make([]any, len(v))
		for i, one := range v {
			words[i] = inWords(one)
		}
		return words
	case map[any]any:
		words := map[string]any{}
		for key, one := range v {
			words[fmt.Sprint(key)] = inWords(one)
		}
		return words
	}
	return value
}
