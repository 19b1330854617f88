package change

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"countersign/protocol"
)

// AAD is the external_aad of every signature of a change request, RFC 9052 §4.4. No
// other signature of Countersign has it.
const AAD = "countersign change v1"

// Signature is an administrator's signature of a request: an untagged COSE_Sign1
// (RFC 9052 §4.2) with ES256 and a detached payload, which is the request's hash.
//
//	[h'A10126', {4: signer id, 8 bytes}, null, r‖s, 64 bytes]
type Signature struct {
	Signer SignerID
	RS     [protocol.SignatureSize]byte
}

// sign1 is the encoding of a Signature.
type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected map[int64][]byte
	Payload     []byte // nil
	Signature   []byte
}

// es256 is the protected header {1: -7}.
var es256 = []byte{0xA1, 0x01, 0x26}

const headerKid = 4 // RFC 9052 §3.1

// Marshal returns the 83 bytes of the signature.
func (s Signature) Marshal() []byte {
	return must(encMode.Marshal(sign1{
		Protected: es256, Unprotected: map[int64][]byte{headerKid: s.Signer[:]}, Signature: s.RS[:],
	}))
}

// ParseSignature parses the output of Marshal and nothing else; errors wrap [ErrSignature].
func ParseSignature(b []byte) (s Signature, err error) {
	var wire sign1
	if err := decMode.Unmarshal(b, &wire); err != nil {
		return s, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	kid := wire.Unprotected[headerKid]
	if !bytes.Equal(wire.Protected, es256) || len(kid) != len(s.Signer) || len(wire.Signature) != len(s.RS) {
		return s, fmt.Errorf("%w: not a COSE_Sign1 by ES256 with the signer's id", ErrSignature)
	}
	s = Signature{Signer: SignerID(kid), RS: [protocol.SignatureSize]byte(wire.Signature)}
	if !bytes.Equal(s.Marshal(), b) {
		return Signature{}, fmt.Errorf("%w: it is not in canonical form", ErrSignature)
	}
	return s, nil
}

// digest returns the digest that ES256 signs for a request.
func digest(h Hash) [sha256.Size]byte {
	return sha256.Sum256(protocol.SigStructure(AAD, h[:]))
}

// Sign countersigns a request with the key of a public key. It returns an error that wraps
// [ErrSignature] if the new signature does not verify.
func Sign(ctx context.Context, with protocol.DigestSigner, public protocol.PublicKey, h Hash) (s Signature, err error) {
	sum := digest(h)
	rs, err := with.SignDigest(ctx, sum[:])
	if err != nil {
		return s, err
	}
	if !public.VerifyDigest(sum[:], rs) {
		return s, fmt.Errorf("signing: %w", ErrSignature)
	}
	return Signature{Signer: SignerOf(public), RS: [protocol.SignatureSize]byte(rs)}, nil
}

// Verify returns an error that wraps [ErrSignature] unless this is a signature of the request by
// the key.
func (s Signature) Verify(h Hash, key protocol.PublicKey) error {
	sum := digest(h)
	if s.Signer != SignerOf(key) || !key.VerifyDigest(sum[:], s.RS[:]) {
		return fmt.Errorf("%w: not of change %s by key %s", ErrSignature, h.ID(), SignerOf(key))
	}
	return nil
}

// FileKey is an administrator's key in the memory of this process. It is meant for
// development: an operator's key belongs on a token.
type FileKey struct{ *ecdsa.PrivateKey }

// SignDigest implements [protocol.DigestSigner].
func (k FileKey) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	rs := make([]byte, protocol.SignatureSize)
	r.FillBytes(rs[:32])
	s.FillBytes(rs[32:])
	return rs, nil
}
