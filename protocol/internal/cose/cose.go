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
// The protected header is kept as received and compared exactly.
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

// Sign makes an attached COSE_Sign1. kid is written if it is not nil.
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

// Parse decodes an attached ES256 COSE_Sign1 and checks everything that
// needs no key. hasKid says whether the unprotected map is {4: bstr1} or empty.
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
	id, err := cbor.Bytes(s.Unprotected[headerKid])
	if err != nil || len(id) != 1 || len(s.Unprotected) != 1 {
		return s, 0, protocol.CodeFormat.Errorf("COSE_Sign1 unprotected headers are not {4: kid}")
	}
	return s, id[0], nil
}

// Verify checks the signature over the exact received bytes.
func (s Sign1) Verify(key protocol.PublicKey, aad string) bool {
	digest := sha256.Sum256(Structure(s.Protected, aad, s.Payload))
	return key.VerifyDigest(digest[:], s.Signature)
}

// Structure is the Sig_structure of RFC 9052 §4.4.
func Structure(protected []byte, aad string, payload []byte) []byte {
	return cbor.Marshal([]any{"Signature1", protected, []byte(aad), payload})
}

// Kid is the kid header of an epoch: the epoch mod 256, one byte.
func Kid(epoch uint64) []byte { return []byte{byte(epoch)} }
