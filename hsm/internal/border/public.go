package border

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"countersign/hsm"
)

// ParsePublic reads the SubjectPublicKeyInfo of a key pair that a token may
// have: P-256, P-384, Ed25519, or RSA of 2048, 3072 or 4096 bits with exponent
// 65537, encoded as Go encodes it. Anything else is [hsm.ErrInput].
func ParsePublic(spki []byte) (crypto.PublicKey, hsm.KeyID, error) {
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, hsm.KeyID{}, fmt.Errorf("public key of %d bytes: %v: %w", len(spki), err, hsm.ErrInput)
	}
	again, id, err := Encode(public)
	if err == nil && !bytes.Equal(again, spki) {
		err = fmt.Errorf("public key is not encoded in the one way: %w", hsm.ErrInput)
	}
	return public, id, err
}

// Encode returns the SubjectPublicKeyInfo of a public key that a token may
// have, and its first 20 bytes of SHA-256. Anything else is [hsm.ErrInput].
func Encode(public crypto.PublicKey) (spki []byte, id hsm.KeyID, err error) {
	if len(uses(public)) == 0 {
		return nil, id, fmt.Errorf("public key of a kind no token has, %T: %w", public, hsm.ErrInput)
	}
	if spki, err = x509.MarshalPKIXPublicKey(public); err != nil {
		return nil, id, fmt.Errorf("encoding public key: %v: %w", err, hsm.ErrInput)
	}
	return spki, keyID(spki), nil
}

func keyID(spki []byte) (id hsm.KeyID) {
	sum := sha256.Sum256(spki)
	copy(id[:], sum[:])
	return id
}

// Fits tells whether a key pair with this public half may be for usage u.
func Fits(u hsm.Usage, public crypto.PublicKey) bool {
	for _, can := range uses(public) {
		if u == can {
			return true
		}
	}
	return false
}

// uses are what a key pair may be for.
func uses(public crypto.PublicKey) []hsm.Usage {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []hsm.Usage{hsm.SignP256, hsm.DeriveP256}
		case elliptic.P384():
			return []hsm.Usage{hsm.SignP384}
		}
	case *ecdh.PublicKey:
		if k.Curve() == ecdh.P256() {
			return []hsm.Usage{hsm.SignP256, hsm.DeriveP256}
		}
	case ed25519.PublicKey:
		return []hsm.Usage{hsm.SignEd25519}
	case *rsa.PublicKey:
		u, ok := map[int]hsm.Usage{2048: hsm.SignRSA2048, 3072: hsm.SignRSA3072, 4096: hsm.SignRSA4096}[k.N.BitLen()]
		if ok && k.E == 65537 {
			return []hsm.Usage{u}
		}
	}
	return nil
}
