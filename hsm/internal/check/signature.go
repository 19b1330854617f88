package check

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"countersign/hsm"
)

// ParsePublic reads the SubjectPublicKeyInfo of a key pair for one of the usages, encoded
// as Go encodes it. Anything else is [hsm.ErrInput].
func ParsePublic(spki []byte) (crypto.PublicKey, hsm.KeyID, error) {
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, hsm.KeyID{}, fmt.Errorf("public key of %d bytes: %v: %w", len(spki), err, hsm.ErrInput)
	}
	again, id, err := Encode(public)
	if err == nil && !bytes.Equal(again, spki) {
		err = fmt.Errorf("public key is not encoded canonically: %w", hsm.ErrInput)
	}
	return public, id, err
}

// Encode returns the SubjectPublicKeyInfo of a public key that fits a usage, and the id of
// the key: the first 20 bytes of its SHA-256. Anything else is [hsm.ErrInput].
func Encode(public crypto.PublicKey) (spki []byte, id hsm.KeyID, err error) {
	if !slices.ContainsFunc(hsm.Usages(), func(u hsm.Usage) bool { return u.Fits(public) }) {
		return nil, id, fmt.Errorf("public key of an unsupported kind, %T: %w", public, hsm.ErrInput)
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

// Input accepts a digest of the hash of alg, or for EdDSA a message of at most [MaxData]
// bytes; anything else is [hsm.ErrInput].
func Input(alg hsm.Algorithm, input []byte) error {
	if alg == hsm.EdDSA {
		return Data(input)
	}
	hash := alg.Hash()
	if hash == 0 {
		return fmt.Errorf("signature algorithm %d is unknown: %w", alg, hsm.ErrInput)
	}
	if len(input) != hash.Size() {
		return fmt.Errorf("%s of a digest of %d bytes, want %d: %w", alg, len(input), hash.Size(), hsm.ErrInput)
	}
	return nil
}

// Usage returns [hsm.ErrKey] if keys of u do not sign with alg.
func Usage(u hsm.Usage, alg hsm.Algorithm) error {
	if !alg.For(u) {
		return fmt.Errorf("key is for %s, not for signing with %s: %w", u, alg, hsm.ErrKey)
	}
	return nil
}

// prefixes are the DER of DigestInfo (RFC 8017 §9.2, note 1) up to the digest.
var prefixes = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

// DigestInfo returns what CKM_RSA_PKCS signs for a digest of hash (PKCS#11 v2.40 §2.1.6):
// modules pad any input.
func DigestInfo(hash crypto.Hash, digest []byte) []byte {
	return append(append([]byte(nil), prefixes[hash]...), digest...)
}

// ErrSignature: the signature is not one of this key over this input.
var ErrSignature = errors.New("signature does not verify")

// Verify checks a signature as [hsm.Signer] returns it, with a public key of
// [ParsePublic]. It returns [ErrSignature] for a signature of another length than the
// algorithm's or the modulus's, with r or s out of [1, n-1], or of other input;
// [hsm.ErrInput] for input that alg does not sign; and [hsm.ErrKey] for a key that alg
// does not fit.
func Verify(public crypto.PublicKey, alg hsm.Algorithm, input, sig []byte) error {
	if err := Input(alg, input); err != nil {
		return err
	}
	if !alg.Fits(public) {
		return fmt.Errorf("verifying %s with a key of %T: %w", alg, public, hsm.ErrKey)
	}
	if !verified(public, alg, input, sig) {
		return fmt.Errorf("%s of %d bytes: %w", alg, len(sig), ErrSignature)
	}
	return nil
}

func verified(public crypto.PublicKey, alg hsm.Algorithm, input, sig []byte) bool {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return verifiedECDSA(k, input, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, input, sig)
	case *rsa.PublicKey:
		if len(sig) != k.Size() {
			return false
		}
		if !alg.PSS() {
			return rsa.VerifyPKCS1v15(k, alg.Hash(), input, sig) == nil
		}
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		return rsa.VerifyPSS(k, alg.Hash(), input, sig, opts) == nil
	}
	return false
}

func verifiedECDSA(k *ecdsa.PublicKey, digest, sig []byte) bool {
	half := (k.Curve.Params().BitSize + 7) / 8
	if len(sig) != 2*half {
		return false
	}
	r, s, n := new(big.Int).SetBytes(sig[:half]), new(big.Int).SetBytes(sig[half:]), k.Curve.Params().N
	for _, v := range []*big.Int{r, s} {
		if v.Sign() <= 0 || v.Cmp(n) >= 0 {
			return false
		}
	}
	return ecdsa.Verify(k, digest, r, s)
}
