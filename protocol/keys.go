package protocol

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"math/big"
)

// PublicKey is a P-256 point in 33-byte SEC1 compressed form. A PublicKey from
// [ParsePublicKey] is on the curve; one that was only decoded may not be.
type PublicKey [33]byte

// ParsePublicKey checks that b is 33 bytes and a point of the curve.
func ParsePublicKey(b []byte) (PublicKey, error) {
	if len(b) != len(PublicKey{}) {
		return PublicKey{}, formatError("public key of %d bytes: want 33", len(b))
	}
	p := PublicKey(b)
	_, err := p.ECDSA()
	return p, err
}

// CompressKey gives the compressed form of an ECDSA key on P-256.
func CompressKey(pub *ecdsa.PublicKey) (PublicKey, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return PublicKey{}, formatError("public key is not on P-256")
	}
	b, err := pub.Bytes()
	if err != nil {
		return PublicKey{}, formatError("public key: %v", err)
	}
	return compress(b), nil
}

// CompressPoint gives the compressed form of a 65-byte uncompressed point.
func CompressPoint(point []byte) (PublicKey, error) {
	if _, err := ecdh.P256().NewPublicKey(point); err != nil {
		return PublicKey{}, formatError("point: %v", err)
	}
	return compress(point), nil
}

func compress(point []byte) PublicKey {
	var p PublicKey
	p[0] = 2 | point[64]&1
	copy(p[1:], point[1:33])
	return p
}

// ECDSA gives the key for verification.
func (p PublicKey) ECDSA() (*ecdsa.PublicKey, error) {
	x, y := elliptic.UnmarshalCompressed(elliptic.P256(), p[:])
	if x == nil {
		return nil, formatError("public key is not a point of P-256")
	}
	point := make([]byte, 65)
	point[0] = 4
	x.FillBytes(point[1:33])
	y.FillBytes(point[33:])
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, formatError("public key: %v", err)
	}
	return key, nil
}

// ECDH gives the key for key agreement.
func (p PublicKey) ECDH() (*ecdh.PublicKey, error) {
	k, err := p.ECDSA()
	if err != nil {
		return nil, err
	}
	return k.ECDH()
}

// RootID is the id of this key as a root.
func (p PublicKey) RootID() RootID {
	sum := sha256.Sum256(p[:])
	return RootID(sum[:8])
}

// RootHash is the hash of this key in an activation code.
func (p PublicKey) RootHash() RootHash {
	sum := sha256.Sum256(p[:])
	return RootHash(sum[:16])
}

func (p PublicKey) String() string { return hex.EncodeToString(p[:]) }

// VerifyDigest checks a 64-byte r‖s over a SHA-256 digest with 0 < r, s < n
// (high s is accepted, PROTOCOL.md §2).
func (p PublicKey) VerifyDigest(digest, sig []byte) bool {
	key, err := p.ECDSA()
	if err != nil || len(sig) != SignatureSize {
		return false
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	return ecdsa.Verify(key, digest, r, s)
}

// SignatureSize is the length of an ES256 signature, r‖s.
const SignatureSize = 64
