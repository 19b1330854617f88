// Package derive returns the exact bytes that are MACed or hashed with keys held elsewhere: `mac` in
// the HSM (PROTOCOL.md §2.1, §3.2) or the password verifier (§4.1). Each input begins with its own
// domain string.
package derive

import (
	"encoding/binary"
	"slices"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/domain"
	"countersign/protocol/internal/strict"
)

// HandleEpoch is 16 random bytes that change with each restore, so that handles from before it
// become invalid. It is public.
type HandleEpoch [16]byte

// HandleKeyInput returns the input from which `mac` derives the AES-256 key of one hour's handles,
// PROTOCOL.md §3.2. hour counts hours since the Unix epoch.
func HandleKeyInput(hour uint32, epoch HandleEpoch) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(domain.Handle), hour), epoch[:]...)
}

// HandleAAD returns the additional data that binds a handle to its device and hour.
func HandleAAD(device protocol.DeviceID, hour uint32) []byte {
	return binary.BigEndian.AppendUint32(slices.Concat([]byte(domain.Handle), device[:]), hour)
}

// PairwiseInput returns the input of the [protocol.PairwiseID], the first 8 bytes of its MAC.
func PairwiseInput(client protocol.ClientID, device protocol.DeviceID) []byte {
	return slices.Concat([]byte(domain.Pairwise), client[:], device[:])
}

// SealKeyInput returns the input of the seal key, PROTOCOL.md §2.1, which is all 32 bytes of its
// MAC.
func SealKeyInput() []byte { return []byte(domain.Seal) }

// Record is the part of a client that the record MAC covered, in stores older than the seals.
type Record struct {
	Kind       string
	Client     protocol.ClientID
	SigningKey protocol.PublicKey
	UVKey      *protocol.PublicKey // nil: none
	Verifier   []byte              // AES-KWP(wrap, K_pw), 40 bytes; nil: none
	Status     uint64
	Roles      []string
	Version    uint64 // increases with each change, so that an old row cannot return
}

// RecordInput returns the input of the record MAC: the domain string, then deterministic CBOR [kind,
// client id, signing key, uv key or h”, wrapped verifier or h”, status, roles, version].
func RecordInput(r Record) []byte {
	roles := r.Roles
	if roles == nil {
		roles = []string{}
	}
	body := cbor.Marshal([]any{
		r.Kind, r.Client, r.SigningKey, optionalKey(r.UVKey), strict.NonNil(r.Verifier), r.Status, roles, r.Version,
	})
	return slices.Concat([]byte(domain.Record), body)
}

// optionalKey returns the key's bytes, or an empty string for nil.
func optionalKey(key *protocol.PublicKey) []byte {
	if key == nil {
		return []byte{}
	}
	return key[:]
}

// PasswordBindInput returns the input that the phone's secret DS MACs to bind a stretched password
// (32 bytes) to this client: b of PROTOCOL.md §4.1.
func PasswordBindInput(client protocol.ClientID, stretched []byte) []byte {
	return slices.Concat([]byte(domain.PwBind), client[:], stretched)
}

// PasswordVerifierInfo is the info of the HKDF-Expand that derives K_pw from b.
const PasswordVerifierInfo = domain.PwVerifier

// PasswordProofInput returns the input of the password proof, the first 16 bytes of its MAC under
// K_pw.
func PasswordProofInput(statementHash [32]byte) []byte {
	return slices.Concat([]byte(domain.PwProof), statementHash[:])
}

// PasswordImport names the parties of one import of a verifier, PROTOCOL.md §4.1.
type PasswordImport struct {
	Root       protocol.RootID
	Ephemeral  protocol.PublicKey // the client's, for one import
	Enrol      protocol.PublicKey // the appliance's key `enrol`
	SigningKey protocol.PublicKey // the client's
}

// Context returns the SHA-256 that is encrypted under Z with AES-256-ECB; the ciphertext is the KEK.
func (p PasswordImport) Context() [32]byte {
	return [32]byte(domain.Hash(domain.PwEnrol, p.Root[:], p.Ephemeral[:], p.Enrol[:], p.SigningKey[:]))
}
