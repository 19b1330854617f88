package worker

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"
	"math/big"

	"countersign/hsm"
)

// verify holds a signature to the public key, FIPS 186-5 §6.4.2. One that does
// not verify is [hsm.ErrGarbled].
func verify(k hsm.Key, digest, sig []byte) error {
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), k.Public)
	if err != nil {
		return fmt.Errorf("public key of %s: %v: %w", k.Label, err, hsm.ErrKey)
	}
	if len(sig) != 64 || !ecdsa.Verify(public, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return fmt.Errorf("a signature by %s does not verify: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}

func point(k hsm.Key) (*ecdh.PublicKey, error) {
	public, err := ecdh.P256().NewPublicKey(k.Public)
	if err != nil {
		return nil, fmt.Errorf("public key of %s: %v: %w", k.Label, err, hsm.ErrKey)
	}
	return public, nil
}
