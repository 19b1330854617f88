package protocol

import (
	"encoding/binary"
	"slices"
)

// The functions of this file give the exact bytes that are MACed or hashed with
// keys held elsewhere: `mac` in the HSM (PROTOCOL.md §2.1, §3.2), or the
// password verifier (§4.1). Each begins with its own domain string.

// HandleEpoch is 16 random bytes by which the handles of one life of an appliance
// differ from those before a restore. It is no secret.
type HandleEpoch [16]byte

// HandleKeyInput is what `mac` MACs for the AES-256 key of one hour's handles,
// PROTOCOL.md §3.2. hour counts hours since the Unix epoch.
func HandleKeyInput(hour uint32, epoch HandleEpoch) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(domainHandle), hour), epoch[:]...)
}

// HandleAAD is the additional data that binds a handle to its device and hour.
func HandleAAD(device DeviceID, hour uint32) []byte {
	return binary.BigEndian.AppendUint32(slices.Concat([]byte(domainHandle), device[:]), hour)
}

// PairwiseInput is what `mac` MACs for the [PairwiseID]: its first 8 bytes.
func PairwiseInput(client ClientID, device DeviceID) []byte {
	return slices.Concat([]byte(domainPairwise), client[:], device[:])
}

// SealKeyInput is what `mac` MACs for the key of the seals, PROTOCOL.md §2.1: all 32
// bytes of the result are the key.
func SealKeyInput() []byte { return []byte(domainSeal) }

// Record is what the record MAC covered of a client in stores of before the seals.
type Record struct {
	Kind       string
	Client     ClientID
	SigningKey PublicKey
	UVKey      *PublicKey // nil: none
	Verifier   []byte     // AES-KWP(wrap, K_pw), 40 bytes; nil: none
	Status     uint64
	Roles      []string
	Version    uint64 // rises with each change, so that an old row does not come back
}

// RecordInput is what `mac` MACed for such a record: the domain string, then det-CBOR
// [kind, client id, signing key, uv key or h”, wrapped verifier or h”, status,
// roles, version].
func RecordInput(r Record) []byte {
	roles := r.Roles
	if roles == nil {
		roles = []string{}
	}
	body := marshal([]any{
		r.Kind, r.Client, r.SigningKey, optionalKey(r.UVKey), present(r.Verifier), r.Status, roles, r.Version,
	})
	return slices.Concat([]byte(domainRecord), body)
}

// optionalKey is the key's bytes, or the empty string where there is none.
func optionalKey(key *PublicKey) []byte {
	if key == nil {
		return []byte{}
	}
	return key[:]
}

// present turns nil, which CBOR writes as null, into the empty byte string.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// PasswordBindInput is what the phone's secret DS MACs to bind a stretched
// password (32 bytes) to this client: b of PROTOCOL.md §4.1.
func PasswordBindInput(client ClientID, stretched []byte) []byte {
	return slices.Concat([]byte(domainPwBind), client[:], stretched)
}

// PasswordVerifierInfo is the info of the HKDF-Expand that makes K_pw of b.
const PasswordVerifierInfo = domainPwVerifier

// PasswordProofInput is what K_pw MACs; the proof is the first 16 bytes.
func PasswordProofInput(statementHash [32]byte) []byte {
	return slices.Concat([]byte(domainPwProof), statementHash[:])
}

// PasswordImport names the parties of one import of a verifier, PROTOCOL.md §4.1.
type PasswordImport struct {
	Root       RootID
	Ephemeral  PublicKey // the client's, for this import only
	Enrol      PublicKey // the appliance's key `enrol`
	SigningKey PublicKey // the client's
}

// Context is the SHA-256 that is encrypted under Z with AES-256-ECB; the
// ciphertext is the KEK.
func (p PasswordImport) Context() [32]byte {
	return [32]byte(hash(domainPwEnrol, p.Root[:], p.Ephemeral[:], p.Enrol[:], p.SigningKey[:]))
}
