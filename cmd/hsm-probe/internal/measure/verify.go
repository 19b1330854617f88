package measure

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"math/big"
)

// errSignature: the token signed wrongly, which no figure makes good.
var errSignature = errors.New("a signature does not verify")

// Verified returns a signature that is checked by its caller, and the check alone,
// of one signature again and again.
func (g *Token) Verified(ctx context.Context) (both, check func(context.Context) error, err error) {
	parsed, err := x509.ParsePKIXPublicKey(g.sign.Public)
	if err != nil {
		return nil, nil, err
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return nil, nil, errSignature
	}
	verify := func(sig []byte) error {
		if !ecdsa.Verify(public, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
			return errSignature
		}
		return nil
	}
	one, err := g.signature(ctx)
	if err != nil {
		return nil, nil, err
	}
	both = func(ctx context.Context) error {
		sig, err := g.signature(ctx)
		if err != nil {
			return err
		}
		return verify(sig)
	}
	return both, func(context.Context) error { return verify(one) }, nil
}
