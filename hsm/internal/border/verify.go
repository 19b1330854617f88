package border

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"countersign/hsm"
)

// ErrSignature: the signature is not one of this key over this input.
var ErrSignature = errors.New("signature does not verify")

// Verify checks a signature as [hsm.Signer] returns it, with a public key of
// [ParsePublic]. A signature of another length than the algorithm's or the
// modulus's, with r or s out of [1, n-1], or of something else is
// [ErrSignature]; input that alg does not sign is [hsm.ErrInput], a key that it
// is not for [hsm.ErrKey].
func Verify(public crypto.PublicKey, alg hsm.Algorithm, input, sig []byte) error {
	if err := Input(alg, input); err != nil {
		return err
	}
	if !signs(public, alg) {
		return fmt.Errorf("verifying %s with a key of %T: %w", alg, public, hsm.ErrKey)
	}
	if !verified(public, alg, input, sig) {
		return fmt.Errorf("%s of %d bytes: %w", alg, len(sig), ErrSignature)
	}
	return nil
}

func signs(public crypto.PublicKey, alg hsm.Algorithm) bool {
	for _, u := range uses(public) {
		if alg.For(u) {
			return true
		}
	}
	return false
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
		if alg < hsm.PS256 {
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
