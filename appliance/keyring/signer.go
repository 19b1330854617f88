package keyring

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"fmt"
	"io"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"countersign/hsm"
	"countersign/protocol"
)

// Signer signs digests with one key of the token.
type Signer struct {
	token hsm.Token
	key   Key
}

// Signer of this key version.
func (r *Keyring) Signer(key Key) Signer { return Signer{token: r.token, key: key} }

// SignDigest signs a 32-byte SHA-256 digest and returns r‖s, 64 bytes. The token has
// verified it with the public key that the key's id is the hash of, which is the one of
// the registry: [Load] compared them.
func (s Signer) SignDigest(ctx context.Context, digest []byte) ([]byte, error) {
	sig, err := s.token.Sign(ctx, s.key.ID, hsm.ES256, digest)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", s.key.label(), err)
	}
	return sig, nil
}

// certSigner is a Signer as crypto/x509 wants one, within one context.
type certSigner struct {
	Signer
	ctx    context.Context
	public *ecdsa.PublicKey
}

func (s Signer) forCertificates(ctx context.Context) (certSigner, error) {
	public, err := s.key.Point.ECDSA()
	return certSigner{Signer: s, ctx: ctx, public: public}, err
}

func (c certSigner) Public() crypto.PublicKey { return c.public }

func (c certSigner) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	sig, err := c.SignDigest(c.ctx, digest)
	if err != nil {
		return nil, err
	}
	return derSignature(sig)
}

// derSignature turns r‖s into the Ecdsa-Sig-Value of RFC 3279 §2.2.3.
func derSignature(sig []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(sig[:protocol.SignatureSize/2]))
		b.AddASN1BigInt(new(big.Int).SetBytes(sig[protocol.SignatureSize/2:]))
	})
	return b.Bytes()
}
