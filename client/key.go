package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"countersign/internal/durable"
	"countersign/protocol"
)

// Key is a phone's signing key, P-256. A phone's keystore has one that cannot be
// exported; the one here is software.
type Key interface {
	protocol.DigestSigner
	Public() protocol.PublicKey
}

// KeyStore keeps a phone's keys. When Create returns, the key is durable.
type KeyStore interface {
	// Create makes a new key.
	Create(ctx context.Context) (Key, error)
	// Load finds the key with this public key.
	Load(ctx context.Context, public protocol.PublicKey) (Key, error)
	// Delete forgets a key for good; one that is not there is no error.
	Delete(ctx context.Context, public protocol.PublicKey) error
}

// fileKeys keeps each key as PKCS#8 in PEM in a file of mode 0600 of the state
// directory, named after the client id that goes with it.
type fileKeys struct{ dir *durable.Dir }

const pemType = "PRIVATE KEY"

func keyFile(public protocol.PublicKey) string {
	return "key-" + protocol.ClientIDOf(public).String() + ".pem"
}

func (s fileKeys) Create(context.Context) (Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a signing key: %w", err)
	}
	key, err := newFileKey(private)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encoding the signing key: %w", err)
	}
	if err := s.dir.Write(keyFile(key.public), pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})); err != nil {
		return nil, fmt.Errorf("storing the signing key: %w", err)
	}
	return key, nil
}

func (s fileKeys) Load(_ context.Context, public protocol.PublicKey) (Key, error) {
	b, err := s.dir.Read(keyFile(public))
	if err != nil {
		return nil, fmt.Errorf("loading the signing key: %w", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("signing key file is not one PEM %s: %w", pemType, ErrState)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("signing key: %v: %w", err, ErrState)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("signing key is a %T: %w", parsed, ErrState)
	}
	key, err := newFileKey(private)
	if err != nil || key.public != public {
		return nil, fmt.Errorf("signing key file holds another key: %w", ErrState)
	}
	return key, nil
}

func (s fileKeys) Delete(_ context.Context, public protocol.PublicKey) error {
	if err := s.dir.Remove(keyFile(public)); err != nil {
		return fmt.Errorf("deleting a signing key: %w", err)
	}
	return nil
}

type fileKey struct {
	private *ecdsa.PrivateKey
	public  protocol.PublicKey
}

func newFileKey(private *ecdsa.PrivateKey) (fileKey, error) {
	public, err := protocol.CompressKey(&private.PublicKey)
	return fileKey{private, public}, err
}

func (k fileKey) Public() protocol.PublicKey { return k.public }

// SignDigest gives r‖s, 64 bytes.
func (k fileKey) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.private, digest)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:protocol.SignatureSize/2])
	s.FillBytes(sig[protocol.SignatureSize/2:])
	return sig, nil
}

// String keeps the key from printing.
func (k fileKey) String() string { return "[redacted]" }

// GoString keeps %#v from printing the key.
func (k fileKey) GoString() string { return "[redacted]" }
