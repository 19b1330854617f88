package failover

import (
	"context"
	"crypto/ecdh"

	"countersign/hsm"
)

// Sign implements [hsm.Token].
func (s *Set) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Sign(ctx, key, alg, input) })
}

// Derive implements [hsm.Token].
func (s *Set) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Derive(ctx, key, peer) })
}

// MAC implements [hsm.Token].
func (s *Set) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.MAC(ctx, key, data) })
}

// Import implements [hsm.Token].
func (s *Set) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Import(ctx, i) })
}

// MACWrapped implements [hsm.Token].
func (s *Set) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.MACWrapped(ctx, wrap, wrapped, data) })
}

// Certificates implements [hsm.Token].
func (s *Set) Certificates(ctx context.Context) ([]hsm.Certificate, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]hsm.Certificate, error) { return t.Certificates(ctx) })
}

// Rewrap implements [hsm.Token].
func (s *Set) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Rewrap(ctx, r) })
}
