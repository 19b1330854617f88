// Package cose signs and verifies the COSE_Sign1 structures of OA1 (RFC 9052).
package cose

import (
	"bytes"
	"context"
	"crypto/sha256"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/strict"
)

// Sign1 is the untagged COSE_Sign1 (RFC 9052 §4.2) of PROTOCOL.md §2:
//
//	[protected bstr, unprotected map, payload bstr or null, signature bstr64]
//
// The protected header is kept as received and must match exactly.
type Sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected map[int64]cbor.RawMessage
	Payload     []byte
	Signature   []byte
}

// protectedES256 is {1: -7}, the only protected header outside batch receipts.
var protectedES256 = []byte{0xA1, 0x01, 0x26}

// headerKid is the COSE header label of kid, RFC 9052 §3.1.
const headerKid = 4

// Sign returns an attached COSE_Sign1, with a kid header unless kid is nil.
func Sign(ctx context.Context, signer protocol.DigestSigner, aad string, payload, kid []byte) ([]byte, error) {
	digest := sha256.Sum256(protocol.SigStructure(aad, payload))
	sig, err := signer.SignDigest(ctx, digest[:])
	if err != nil {
		return nil, err
	}
	unprotected := map[int64]cbor.RawMessage{}
	if kid != nil {
		unprotected[headerKid] = cbor.Marshal(kid)
	}
	return cbor.Marshal(Sign1{Protected: protectedES256, Unprotected: unprotected, Payload: payload, Signature: sig}), nil
}

// Parse decodes an attached ES256 COSE_Sign1 and checks everything that needs no key. The
// unprotected map must be {4: bstr1} if hasKid is set, and empty otherwise.
func Parse(b []byte, hasKid bool) (s Sign1, kid byte, err error) {
	if err := strict.Item(b, &s); err != nil {
		return s, 0, err
	}
	if !bytes.Equal(s.Protected, protectedES256) || s.Unprotected == nil || s.Payload == nil || len(s.Signature) != protocol.SignatureSize {
		return s, 0, protocol.CodeFormat.Errorf("COSE_Sign1 is not an attached ES256 signature")
	}
	if !hasKid {
		if len(s.Unprotected) != 0 {
			return s, 0, protocol.CodeFormat.Errorf("COSE_Sign1 has unprotected headers")
		}
		return s, 0, nil
	}
	var id []byte
	if err := cbor.Unmarshal(s.Unprotected[headerKid], &id); err != nil || len(id) != 1 || len(s.Unprotected) != 1 {
		return s, 0, protocol.CodeFormat.Errorf("COSE_Sign1 unprotected headers are not {4: kid}")
	}
	return s, id[0], nil
}

// Verify reports whether the signature over the received bytes is valid.
func (s Sign1) Verify(key protocol.PublicKey, aad string) bool {
	digest := sha256.Sum256(Structure(s.Protected, aad, s.Payload))
	return key.VerifyDigest(digest[:], s.Signature)
}

// Structure returns the Sig_structure of RFC 9052 §4.4.
func Structure(protected []byte, aad string, payload []byte) []byte {
	return cbor.Marshal([]any{"Signature1", protected, []byte(aad), payload})
}

// Kid returns the kid header of an epoch: one byte, the epoch modulo 256.
func Kid(epoch uint64) []byte { return []byte{byte(epoch)} }
