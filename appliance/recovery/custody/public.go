package custody

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"countersign/protocol"
)

// ErrPublic means that a text is not the public half of a backup key.
var ErrPublic = errors.New("not the public half of a backup key: want a P-256 key as PEM, PUBLIC KEY")

// PointOf returns the compressed form of a P-256 key.
func PointOf(key *ecdh.PublicKey) (p protocol.PublicKey) {
	b := key.Bytes() // 04 ‖ x ‖ y
	p[0] = 2 + b[64]&1
	copy(p[1:], b[1:33])
	return p
}

// ParsePoint parses the 66 hexadecimal digits of a compressed point. Errors wrap
// [ErrPublic].
func ParsePoint(s string) (p protocol.PublicKey, err error) {
	b, err := hex.DecodeString(s)
	if err == nil {
		p, err = protocol.ParsePublicKey(b)
	}
	if err != nil {
		err = fmt.Errorf("point of %d digits: %v: %w", len(s), err, ErrPublic)
	}
	return p, err
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
