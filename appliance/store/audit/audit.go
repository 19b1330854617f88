// Package audit defines the records of the audit log: their content, encoding and hash (PROTOCOL.md
// §4).
package audit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
)

// Record is one audit record. Its leaf in the log is SHA-256(Salt || Body).
type Record struct {
	Sequence uint64 // given by the store: from 1, without gaps
	At       time.Time
	Kind     string // one of the kinds below
	Subject  string // the party or object that it is about: "client/alice"
	Salt     [16]byte
	Body     []byte // det-CBOR
}

// Kinds of audit record.
const (
	KindDecision = "decision" // a serial was spent
	KindRefused  = "refused"  // a verified countersignature was refused and its serial is not spent; see KindRepeats
	KindFinal    = "final"    // a pending decision ended
	KindSettled  = "settled"  // a serial was denied because its client asked about it
	KindUnlock   = "unlock"   // an administrator set a client's password guard back
	KindFailures = "failures" // countersignatures that did not verify: one record per device and minute
	KindRepeats  = "repeats"  // refusals beyond the first of a client, serial and code: one record per client and minute, and one of clients beyond a bound
	KindOutcome  = "outcome"  // a device's report
	KindCeremony = "ceremony" // keys and trust made
	KindKeys     = "key"      // a key version was created, certified, activated, retired, …
	KindPolicy   = "policy"   // a policy became active
	KindClients  = "client"   // a client was invited, enrolled or changed
	KindHSM      = "hsm"      // an administrator gave the PIN of a token
	KindStore    = "store"    // the database was copied, upgraded, or came back from a copy
	KindDevices  = "device"   // a device was invited, enrolled, renewed or changed
	KindAdmins   = "admin"    // an administrator was added or changed
	KindChanges  = "change"   // a change was requested, countersigned, executed, …
)

// Decision is the body of a record about a spent serial.
type Decision struct {
	Statement []byte           `cbor:"1,keyasint"`
	Signature []byte           `cbor:"2,keyasint"`
	Slot      uint64           `cbor:"3,keyasint"`
	Proof     []byte           `cbor:"4,keyasint"`
	Factors   protocol.Factors `cbor:"5,keyasint"`
	Decision  []byte           `cbor:"6,keyasint"`
	Policy    []byte           `cbor:"7,keyasint"`            // SHA-256
	Reason    protocol.Code    `cbor:"8,keyasint"`            // as the client was told
	Reference string           `cbor:"9,keyasint,omitempty"`  // the device's own
	Asked     []uint64         `cbor:"10,keyasint,omitempty"` // result and reason of the serial that was asked about
}

var mode = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// Encode returns v as deterministic CBOR.
func Encode(v any) []byte {
	b, err := mode.Marshal(v)
	if err != nil {
		panic(err) // a type that cannot be encoded: a defect, not input
	}
	return b
}

// NewRecord returns the record of an administrative change. It encodes fields as a CBOR map with
// text keys; they must hold no secret.
func NewRecord(kind, subject string, fields map[string]any) Record {
	return Record{At: time.Now().UTC().Truncate(time.Microsecond), Kind: kind, Subject: subject, Salt: NewSalt(), Body: Encode(fields)}
}

// NewSalt returns 16 random bytes. Salts keep leaf hashes from revealing records that can be
// guessed.
func NewSalt() (salt [16]byte) {
	_, _ = rand.Read(salt[:]) // never fails, crypto/rand
	return salt
}

// Leaf returns the entry of the record in the transparency log.
func (r Record) Leaf() [32]byte {
	return sha256.Sum256(append(r.Salt[:], r.Body...))
}

// Words returns the fields of the record by name, byte strings in hexadecimal.
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
