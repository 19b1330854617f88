package message

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/internal/domain"
)

// The suites of PROTOCOL.md §2. They differ in their KEM only.
const (
	Suite1 = 1 // DHKEM(P-256, HKDF-SHA256), RFC 9180
	Suite2 = 2 // for tokens that do not let Z out
)

// kemIDs are the KEM identifiers in HPKE's suite_id. IANA has not assigned 0xFF02.
var kemIDs = map[uint8]uint16{Suite1: 0x0010, Suite2: 0xFF02}

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
	return sharedSecret(k.suite, z, append(enc[:len(enc):len(enc)], k.key.PublicKey().Bytes()...)), nil
}

// sharedSecret returns the KEM shared secret of Z. context is enc || pkR, both uncompressed.
func sharedSecret(suite uint8, z, context []byte) []byte {
	if suite == Suite2 {
		// ANSI X9.63 with SHA-256 and no SharedInfo, which PKCS#11 calls CKD_SHA256_KDF.
		h := sha256.New()
		h.Write(z)
		h.Write([]byte{0, 0, 0, 1})
		mac := hmac.New(sha256.New, h.Sum(nil))
		mac.Write([]byte(domain.KEM2))
		mac.Write(context)
		return mac.Sum(nil)
	}
	kem := labels(binary.BigEndian.AppendUint16([]byte("KEM"), kemIDs[suite])) // RFC 9180 §4.1
	return kem.expand(kem.extract(nil, "eae_prk", z), "shared_secret", context, sha256.Size)
}

// hpkeContext is the base mode of RFC 9180 §5.1 for one message.
type hpkeContext struct {
	aead
	labels   labels
	exporter []byte
}

func newContext(suite uint8, shared, info []byte) hpkeContext {
	id := binary.BigEndian.AppendUint16([]byte("HPKE"), kemIDs[suite])
	l := labels(append(id, 0, 1, 0, 1)) // HKDF-SHA256, AES-128-GCM
	context := append([]byte{0}, l.extract(nil, "psk_id_hash", nil)...)
	context = append(context, l.extract(nil, "info_hash", info)...)
	secret := l.extract(shared, "secret", nil)
	return hpkeContext{
		aead: aead{
			key:   [aeadKeySize]byte(l.expand(secret, "key", context, aeadKeySize)),
			nonce: [aeadNonceSize]byte(l.expand(secret, "base_nonce", context, aeadNonceSize)),
		},
		labels: l, exporter: l.expand(secret, "exp", context, sha256.Size),
	}
}

// session returns ES, RFC 9180 §5.3.
func (c hpkeContext) session() Secret {
	return Secret(c.labels.expand(c.exporter, "sec", []byte(domain.Session), len(Secret{})))
}

// labels are LabeledExtract and LabeledExpand of RFC 9180 §4 for one suite_id.
type labels []byte

func (l labels) extract(salt []byte, label string, ikm []byte) []byte {
	return must(hkdf.Extract(sha256.New, l.labeled(nil, label, ikm), salt))
}

func (l labels) expand(prk []byte, label string, info []byte, size int) []byte {
	length := binary.BigEndian.AppendUint16(nil, uint16(size))
	return must(hkdf.Expand(sha256.New, prk, string(l.labeled(length, label, info)), size))
}

func (l labels) labeled(prefix []byte, label string, rest []byte) []byte {
	out := append(append(prefix, "HPKE-v1"...), l...)
	return append(append(out, label...), rest...)
}

func checkSuite(suite uint8) error {
	if _, ok := kemIDs[suite]; !ok {
		return fmt.Errorf("suite %d: %w", suite, protocol.CodeVersion)
	}
	return nil
}
