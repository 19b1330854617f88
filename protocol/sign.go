package protocol

import (
	"context"

	"countersign/protocol/internal/det"
)

// DigestSigner signs 32-byte SHA-256 digests with one P-256 key and returns r‖s,
// 64 bytes. The HSM's keys and the phone's keys both come as this.
type DigestSigner interface {
	SignDigest(ctx context.Context, digest []byte) ([]byte, error)
}

// SigStructure is the Sig_structure of RFC 9052 §4.4 for an ES256 signature.
func SigStructure(aad string, payload []byte) []byte {
	return det.Marshal([]any{"Signature1", []byte{0xA1, 0x01, 0x26}, []byte(aad), payload})
}
