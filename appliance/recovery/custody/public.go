package custody

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
)

// ErrPublic means that a text is not the public half of a backup key.
var ErrPublic = errors.New("not the public half of a backup key: want a P-256 key as PEM, PUBLIC KEY")

// Point is a public key on P-256 in compressed form, 33 bytes (SEC 1 §2.3.3).
type Point [33]byte

// PointOf returns the compressed form of a P-256 key.
func PointOf(key *ecdh.PublicKey) (p Point) {
	b := key.Bytes() // 04 ‖ x ‖ y
	p[0] = 2 + b[64]&1
	copy(p[1:], b[1:33])
	return p
}

// ParsePoint parses 66 hexadecimal digits. Errors wrap [ErrPublic].
func ParsePoint(s string) (p Point, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(p) {
		return p, fmt.Errorf("point of %d digits: %w", len(s), ErrPublic)
	}
	p = Point(b)
	_, err = p.ECDH()
	return p, err
}

func (p Point) String() string { return hex.EncodeToString(p[:]) }

// ECDH returns the key for key agreement. Errors wrap [ErrPublic].
func (p Point) ECDH() (*ecdh.PublicKey, error) {
	x, y := elliptic.UnmarshalCompressed(elliptic.P256(), p[:])
	if x == nil {
		return nil, fmt.Errorf("point %s is not on P-256: %w", p, ErrPublic)
	}
	return ecdh.P256().NewPublicKey(uncompressed(x, y))
}

func uncompressed(x, y *big.Int) []byte {
	b := make([]byte, 65)
	b[0] = 4
	x.FillBytes(b[1:33])
	y.FillBytes(b[33:])
	return b
}

// PublicPEM returns the file for backup.recipient in config.toml: a SubjectPublicKeyInfo
// (RFC 5280 §4.1.2.7) as PEM (RFC 7468 §13).
func PublicPEM(key *ecdh.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("public half of the backup key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParsePublicPEM parses a file of [PublicPEM]. Errors wrap [ErrPublic].
func ParsePublicPEM(text []byte) (*ecdh.PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
		return nil, ErrPublic
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrPublic, err)
	}
	if ec, ok := parsed.(*ecdsa.PublicKey); ok {
		if key, err := ec.ECDH(); err == nil && key.Curve() == ecdh.P256() {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w, not a %T", ErrPublic, parsed)
}
