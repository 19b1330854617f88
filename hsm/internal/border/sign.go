package border

import (
	"crypto"
	"fmt"

	"countersign/hsm"
)

// Input accepts what alg signs: a digest of its hash, or a message of at most
// [MaxData] bytes; anything else is [hsm.ErrInput].
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

// Usage refuses an algorithm that keys of u do not sign with, as [hsm.ErrKey].
func Usage(u hsm.Usage, alg hsm.Algorithm) error {
	if !alg.For(u) {
		return fmt.Errorf("key is for %s, not for signing with %s: %w", u, alg, hsm.ErrKey)
	}
	return nil
}

// SignatureLen is the length of alg's signatures in bytes; -1 with RSA, where
// it is that of the modulus.
func SignatureLen(alg hsm.Algorithm) int {
	switch alg {
	case hsm.ES256, hsm.EdDSA:
		return 64
	case hsm.ES384:
		return 96
	}
	return -1
}

// prefixes are the DER of DigestInfo (RFC 8017 §9.2, note 1) up to the digest.
var prefixes = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

// DigestInfo is what CKM_RSA_PKCS signs for a digest of hash (PKCS#11 v2.40
// §2.1.6): modules pad whatever they are given.
func DigestInfo(hash crypto.Hash, digest []byte) []byte {
	return append(append([]byte(nil), prefixes[hash]...), digest...)
}
