package password

import (
	"crypto/aes"
	"crypto/ecdh"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/kwp/subtle"

	"countersign/protocol"
	"countersign/protocol/derive"
)

// Wrap encrypts a verifier for the appliance's key `enrol`, PROTOCOL.md §4.1: AES-KWP under a KEK of
// the agreed secret and the parties' names. Use each ephemeral key once. It returns
// [protocol.CodeFormat] if ephemeral differs from names.Ephemeral or names.Enrol is not a point.
func Wrap(v Verifier, ephemeral *ecdh.PrivateKey, names derive.PasswordImport) ([]byte, error) {
	if err := matches(ephemeral, names.Ephemeral); err != nil {
		return nil, err
	}
	kek, err := agree(ephemeral, names.Enrol, names)
	if err != nil {
		return nil, err
	}
	return kek.Wrap(v[:])
}

// Unwrap is the appliance's side in software, for modules that cannot unwrap inside. It returns
// [protocol.CodeFormat] unless the result is a 32-byte verifier.
func Unwrap(wrapped []byte, enrol *ecdh.PrivateKey, names derive.PasswordImport) (Verifier, error) {
	if err := matches(enrol, names.Enrol); err != nil {
		return Verifier{}, err
	}
	kek, err := agree(enrol, names.Ephemeral, names)
	if err != nil {
		return Verifier{}, err
	}
	key, err := kek.Unwrap(wrapped)
	if err != nil {
		return Verifier{}, fmt.Errorf("unwrapping verifier: %v: %w", err, protocol.CodeFormat)
	}
	if len(key) != len(Verifier{}) {
		return Verifier{}, fmt.Errorf("unwrapped verifier has %d bytes, want %d: %w", len(key), len(Verifier{}), protocol.CodeFormat)
	}
	return Verifier(key), nil
}

func matches(key *ecdh.PrivateKey, public protocol.PublicKey) error {
	p, err := protocol.CompressPoint(key.PublicKey().Bytes())
	if err != nil {
		return err
	}
	if p != public {
		return fmt.Errorf("private key does not belong to public key %v: %w", public, protocol.CodeFormat)
	}
	return nil
}

// agree returns KEK = AES-256-ECB(Z, context), two blocks.
func agree(own *ecdh.PrivateKey, peer protocol.PublicKey, names derive.PasswordImport) (*subtle.KWP, error) {
	public, err := peer.ECDH()
	if err != nil {
		return nil, err
	}
	z, err := own.ECDH(public)
	if err != nil {
		return nil, fmt.Errorf("agreeing on KEK: %v: %w", err, protocol.CodeFormat)
	}
	kek, err := keyEncryptionKey(z, names.Context())
	if err != nil {
		return nil, err
	}
	return subtle.NewKWP(kek)
}

func keyEncryptionKey(z []byte, context [32]byte) ([]byte, error) {
	block, err := aes.NewCipher(z)
	if err != nil {
		return nil, fmt.Errorf("making KEK: %w", err)
	}
	kek := make([]byte, len(context))
	for i := 0; i < len(kek); i += aes.BlockSize {
		block.Encrypt(kek[i:], context[i:])
	}
	return kek, nil
}
