package protocol

import (
	"bytes"
	"context"
	"crypto/sha256"
)

// Sign1 is the untagged COSE_Sign1 (RFC 9052 §4.2) of PROTOCOL.md §2:
//
//	[protected bstr, unprotected map, payload bstr or null, signature bstr64]
//
// The protected header is kept as received and compared exactly.
type Sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected map[int64]any
	Payload     []byte
	Signature   []byte
}

// protectedES256 is {1: -7}, the only protected header outside batch receipts.
var protectedES256 = []byte{0xA1, 0x01, 0x26}

// headerKid is the COSE header label of kid, RFC 9052 §3.1.
const headerKid = 4

// DigestSigner signs 32-byte SHA-256 digests with one P-256 key and returns r‖s,
// 64 bytes. The HSM's keys and the phone's keys both come as this.
type DigestSigner interface {
	SignDigest(ctx context.Context, digest []byte) ([]byte, error)
}

// SigStructure is the Sig_structure of RFC 9052 §4.4 for an ES256 signature.
func SigStructure(aad string, payload []byte) []byte {
	return sigStructure(protectedES256, aad, payload)
}

func sigStructure(protected []byte, aad string, payload []byte) []byte {
	return marshal([]any{"Signature1", protected, []byte(aad), payload})
}

// sign1 makes an attached COSE_Sign1. kid is written if it is not nil.
func sign1(ctx context.Context, signer DigestSigner, aad string, payload, kid []byte) ([]byte, error) {
	digest := sha256.Sum256(SigStructure(aad, payload))
	sig, err := signer.SignDigest(ctx, digest[:])
	if err != nil {
		return nil, err
	}
	unprotected := map[int64]any{}
	if kid != nil {
		unprotected[headerKid] = kid
	}
	return marshal(Sign1{Protected: protectedES256, Unprotected: unprotected, Payload: payload, Signature: sig}), nil
}

// parseSign1 decodes an attached ES256 COSE_Sign1 and checks everything that
// needs no key. hasKid says whether the unprotected map is {4: bstr1} or empty.
func parseSign1(b []byte, hasKid bool) (s Sign1, kid byte, err error) {
	if err := unmarshalSame(b, &s); err != nil {
		return s, 0, err
	}
	if !bytes.Equal(s.Protected, protectedES256) || s.Unprotected == nil || s.Payload == nil || len(s.Signature) != SignatureSize {
		return s, 0, formatError("COSE_Sign1 is not an attached ES256 signature")
	}
	if !hasKid {
		if len(s.Unprotected) != 0 {
			return s, 0, formatError("COSE_Sign1 has unprotected headers")
		}
		return s, 0, nil
	}
	id, ok := s.Unprotected[headerKid].([]byte)
	if !ok || len(id) != 1 || len(s.Unprotected) != 1 {
		return s, 0, formatError("COSE_Sign1 unprotected headers are not {4: kid}")
	}
	return s, id[0], nil
}

// verify checks the signature over the exact received bytes.
func (s Sign1) verify(key PublicKey, aad string) bool {
	digest := sha256.Sum256(sigStructure(s.Protected, aad, s.Payload))
	return key.VerifyDigest(digest[:], s.Signature)
}
