package protocol_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"math/big"
	"testing"

	"countersign/protocol"
)

// keySigner is a [DigestSigner] in software.
type keySigner struct{ key *ecdsa.PrivateKey }

func newKeySigner(t testing.TB) keySigner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return keySigner{key}
}

func (s keySigner) public(t testing.TB) protocol.PublicKey {
	t.Helper()
	p, err := protocol.CompressKey(&s.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s keySigner) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest)
	if err != nil {
		return nil, err
	}
	return joinScalars(r, v), nil
}

func joinScalars(r, s *big.Int) []byte {
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}
