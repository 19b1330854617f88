package protocol

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"

	"countersign/protocol/cbor"
	"countersign/protocol/internal/domain"
)

// ClientID names an enrolled client: SHA-256("OA1 client id v1" || signing
// key)[0:8], PROTOCOL.md §5.
type ClientID [8]byte

// ClientIDOf returns the id of the client with this signing key.
func ClientIDOf(signingKey PublicKey) ClientID {
	return ClientID(domain.Hash(domain.ClientID, signingKey[:])[:8])
}

// DeviceID names a device: SHA-256(SPIFFE ID)[0:8], PROTOCOL.md §2.1.
type DeviceID [8]byte

// DeviceIDOf returns the id of the device with this SPIFFE ID.
func DeviceIDOf(spiffeID string) DeviceID {
	sum := sha256.Sum256([]byte(spiffeID))
	return DeviceID(sum[:8])
}

// Handle returns the first 4 bytes of the id, which clients see (P2.5).
func (id DeviceID) Handle() DeviceHandle { return DeviceHandle(id[:4]) }

// DeviceHandle is the first 4 bytes of a [DeviceID].
type DeviceHandle [4]byte

// RootID names a root key: SHA-256(compressed point)[0:8].
type RootID [8]byte

// RootHash is the 16-byte hash of the first root key in an activation code.
type RootHash [16]byte

// Serial is a client's request number: a 4-byte big-endian counter that never decreases, then 8
// random bytes.
type Serial [12]byte

// NewSerial joins a counter and 8 random bytes.
func NewSerial(counter uint32, random [8]byte) Serial {
	var s Serial
	binary.BigEndian.PutUint32(s[:4], counter)
	copy(s[4:], random[:])
	return s
}

// Counter returns the first 4 bytes.
func (s Serial) Counter() uint32 { return binary.BigEndian.Uint32(s[:4]) }

// TransactionID names one decision.
type TransactionID [8]byte

// PairwiseID identifies a client to one device: HMAC(mac, "OA1 pairwise v1" || client id || device
// id)[0:8].
type PairwiseID [8]byte

// PolicyHash is the first 8 bytes of the policy's hash.
type PolicyHash [8]byte

// Challenge is the 16-byte chal that M2 carries in clear.
type Challenge [16]byte

// NewChallenge binds the device's nonce and the appliance's u: SHA-256("OA1 chal v1" || nonce ||
// u)[0:16].
func NewChallenge(nonce, u Nonce) Challenge {
	return Challenge(domain.Hash(domain.Challenge, nonce[:], u[:])[:16])
}

// Nonce is 16 fresh random bytes: the device's nonce of an apply, or the appliance's u.
type Nonce [16]byte

func parseHex(dst []byte, what, s string) error {
	if len(s) != hex.EncodedLen(len(dst)) {
		return CodeFormat.Errorf("%s %q: want %d hexadecimal digits", what, s, hex.EncodedLen(len(dst)))
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return CodeFormat.Errorf("%s %q: %v", what, s, err)
	}
	return nil
}

func (id ClientID) String() string      { return hex.EncodeToString(id[:]) }
func (id DeviceID) String() string      { return hex.EncodeToString(id[:]) }
func (id DeviceHandle) String() string  { return hex.EncodeToString(id[:]) }
func (id RootID) String() string        { return hex.EncodeToString(id[:]) }
func (s Serial) String() string         { return hex.EncodeToString(s[:]) }
func (id TransactionID) String() string { return hex.EncodeToString(id[:]) }
func (id PairwiseID) String() string    { return hex.EncodeToString(id[:]) }
func (h PolicyHash) String() string     { return hex.EncodeToString(h[:]) }
func (c Challenge) String() string      { return hex.EncodeToString(c[:]) }
func (n Nonce) String() string          { return hex.EncodeToString(n[:]) }

// ParseTransactionID parses the 16 hexadecimal digits of String.
func ParseTransactionID(s string) (id TransactionID, err error) {
	err = parseHex(id[:], "transaction id", s)
	return id, err
}

// ParseSerial parses the 24 hexadecimal digits of String.
func ParseSerial(s string) (id Serial, err error) {
	err = parseHex(id[:], "serial", s)
	return id, err
}

// Amount is a sum of money: at most [MaxMinor] minor units (cents) and a currency of three letters
// A–Z. In CBOR it is the array [minor, currency].
type Amount struct {
	_        struct{} `cbor:",toarray"`
	Minor    uint64
	Currency string
}

// MaxMinor is the largest amount, in minor units.
const MaxMinor = 999_999_999_999_999

// Validate returns a CodeFormat error if the currency is malformed or the amount is above
// [MaxMinor].
func (a Amount) Validate() error {
	if a.Minor > MaxMinor {
		return CodeFormat.Errorf("amount %d is not below 10^15", a.Minor)
	}
	if !isCurrency(a.Currency) {
		return CodeFormat.Errorf("currency %q: want three letters A to Z", a.Currency)
	}
	return nil
}

func isCurrency(s string) bool {
	for _, c := range []byte(s) {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return len(s) == 3
}

// String returns the amount in minor units, for logs and errors. Decimals depend on the currency.
func (a Amount) String() string { return fmt.Sprintf("%d %s", a.Minor, a.Currency) }

// Decimal returns the amount for people, with the decimals of its currency (ISO 4217): "12.50 EUR". An amount in a
// currency without known decimals is in minor units, and says so.
func (a Amount) Decimal() string {
	digits, known := MinorDigits(a.Currency)
	if !known {
		return a.String() + " (minor units)"
	}
	number := fmt.Sprintf("%0*d", digits+1, a.Minor)
	if digits > 0 {
		number = number[:len(number)-digits] + "." + number[len(number)-digits:]
	}
	return number + " " + a.Currency
}

// PublicKey is a P-256 point in 33-byte SEC1 compressed form. [ParsePublicKey] returns points on the
// curve only; a decoded PublicKey may be off it.
type PublicKey [33]byte

// ParsePublicKey checks that b is 33 bytes and a point of the curve.
func ParsePublicKey(b []byte) (PublicKey, error) {
	if len(b) != len(PublicKey{}) {
		return PublicKey{}, CodeFormat.Errorf("public key of %d bytes: want 33", len(b))
	}
	p := PublicKey(b)
	_, err := p.ECDSA()
	return p, err
}

// CompressKey returns the compressed form of an ECDSA key on P-256.
func CompressKey(pub *ecdsa.PublicKey) (PublicKey, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return PublicKey{}, CodeFormat.Errorf("public key is not on P-256")
	}
	b, err := pub.Bytes()
	if err != nil {
		return PublicKey{}, CodeFormat.Errorf("public key: %v", err)
	}
	return compress(b), nil
}

// CompressPoint returns the compressed form of a 65-byte uncompressed point.
func CompressPoint(point []byte) (PublicKey, error) {
	if _, err := ecdh.P256().NewPublicKey(point); err != nil {
		return PublicKey{}, CodeFormat.Errorf("point: %v", err)
	}
	return compress(point), nil
}

func compress(point []byte) PublicKey {
	var p PublicKey
	p[0] = 2 | point[64]&1
	copy(p[1:], point[1:33])
	return p
}

// ECDSA returns the key for verification.
func (p PublicKey) ECDSA() (*ecdsa.PublicKey, error) {
	x, y := elliptic.UnmarshalCompressed(elliptic.P256(), p[:])
	if x == nil {
		return nil, CodeFormat.Errorf("public key is not a point of P-256")
	}
	point := make([]byte, 65)
	point[0] = 4
	x.FillBytes(point[1:33])
	y.FillBytes(point[33:])
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, CodeFormat.Errorf("public key: %v", err)
	}
	return key, nil
}

// ECDH returns the key for key agreement.
func (p PublicKey) ECDH() (*ecdh.PublicKey, error) {
	k, err := p.ECDSA()
	if err != nil {
		return nil, err
	}
	return k.ECDH()
}

// RootID returns the id of this key as a root.
func (p PublicKey) RootID() RootID {
	sum := sha256.Sum256(p[:])
	return RootID(sum[:8])
}

// RootHash returns the hash of this key that activation codes contain.
func (p PublicKey) RootHash() RootHash {
	sum := sha256.Sum256(p[:])
	return RootHash(sum[:16])
}

func (p PublicKey) String() string { return hex.EncodeToString(p[:]) }

// VerifyDigest reports whether sig, a 64-byte r‖s with 0 < r, s < n, is a signature of the SHA-256
// digest. It accepts high s (PROTOCOL.md §2).
func (p PublicKey) VerifyDigest(digest, sig []byte) bool {
	key, err := p.ECDSA()
	if err != nil || len(sig) != SignatureSize {
		return false
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	return ecdsa.Verify(key, digest, r, s)
}

// SignatureSize is the length of an ES256 signature, r‖s.
const SignatureSize = 64

// DigestSigner signs 32-byte SHA-256 digests with one P-256 key and returns r‖s, 64 bytes. Keys in
// the HSM and on the phone both implement it.
type DigestSigner interface {
	SignDigest(ctx context.Context, digest []byte) ([]byte, error)
}

// SigStructure returns the Sig_structure of RFC 9052 §4.4 for an ES256 signature.
func SigStructure(aad string, payload []byte) []byte {
	return cbor.Marshal([]any{"Signature1", []byte{0xA1, 0x01, 0x26}, []byte(aad), payload})
}
