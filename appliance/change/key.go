package change

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"

	"countersign/protocol"
)

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
