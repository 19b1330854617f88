package message

import (
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"countersign/internal/kem"
	"countersign/protocol"
	"countersign/protocol/internal/domain"
)

// The suites of PROTOCOL.md §2. They differ in their KEM only.
const (
	Suite1 = uint8(kem.DHKEM) // DHKEM(P-256, HKDF-SHA256), RFC 9180
	Suite2 = uint8(kem.KEM2)  // for tokens that do not let Z out
)

// KEM is the appliance's kem key of one epoch.
type KEM interface {
	// Suite is the suite that the KeyCert of the epoch names.
	Suite() uint8
	// Decap returns the KEM shared secret, 32 bytes, of HPKE's enc, an uncompressed point of 65 bytes.
	Decap(enc []byte) ([]byte, error)
}

// Exchanger is a P-256 key that agrees on secrets, in software ([ecdh.PrivateKey]) or elsewhere.
type Exchanger interface {
	PublicKey() *ecdh.PublicKey
	ECDH(peer *ecdh.PublicKey) ([]byte, error)
}

// NewKEM returns the kem key of a suite whose key agreement returns Z. Decap returns its errors unchanged.
func NewKEM(suite uint8, key Exchanger) KEM { return exchangeKEM{suite, key} }

type exchangeKEM struct {
	suite uint8
	key   Exchanger
}

func (k exchangeKEM) Suite() uint8 { return k.suite }

func (k exchangeKEM) Decap(enc []byte) ([]byte, error) {
	peer, err := ecdh.P256().NewPublicKey(enc)
	if err != nil {
		return nil, protocol.CodeFormat.Errorf("enc: %v", err)
	}
	z, err := k.key.ECDH(peer)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	return kem.ID(k.suite).Secret(z, slices.Concat(enc, k.key.PublicKey().Bytes())), nil
}

// hpkeContext is the base mode of RFC 9180 §5.1 for one message.
type hpkeContext struct {
	aead
	labels   kem.Labels
	exporter []byte
}

func newContext(suite uint8, shared, info []byte) hpkeContext {
	id := binary.BigEndian.AppendUint16([]byte("HPKE"), kem.ID(suite).HPKE())
	l := kem.Labels(append(id, 0, 1, 0, 1)) // HKDF-SHA256, AES-128-GCM
	context := append([]byte{0}, l.Extract(nil, "psk_id_hash", nil)...)
	context = append(context, l.Extract(nil, "info_hash", info)...)
	secret := l.Extract(shared, "secret", nil)
	return hpkeContext{
		aead: aead{
			key:   [aeadKeySize]byte(l.Expand(secret, "key", context, aeadKeySize)),
			nonce: [aeadNonceSize]byte(l.Expand(secret, "base_nonce", context, aeadNonceSize)),
		},
		labels: l, exporter: l.Expand(secret, "exp", context, sha256.Size),
	}
}

// session returns ES, RFC 9180 §5.3.
func (c hpkeContext) session() Secret {
	return Secret(c.labels.Expand(c.exporter, "sec", []byte(domain.Session), len(Secret{})))
}

func checkSuite(suite uint8) error {
	if !kem.ID(suite).Known() {
		return fmt.Errorf("suite %d: %w", suite, protocol.CodeVersion)
	}
	return nil
}
