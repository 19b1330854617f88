package message

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"countersign/internal/secret"
	"countersign/protocol"
	"countersign/protocol/internal/domain"
)

// ReceiptNonce is r, 8 fresh random bytes in each M4.
type ReceiptNonce = [8]byte

// Channel holds the keys of one challenge, the same for client and appliance. PROTOCOL.md §3
// specifies the key schedule.
type Channel struct {
	PRK Secret
	TH1 [32]byte
	// SealM2 and OpenM2 set TH2. A handle stores PRK and TH2, which M3 and M4 need.
	TH2 [32]byte

	m1 []byte
}

// NewChannel derives the channel of an M1 and a challenge. It retains m1.
func NewChannel(es Secret, m1 []byte, chal protocol.Challenge) Channel {
	prk := must(hkdf.Extract(sha256.New, es[:], chal[:]))
	return Channel{PRK: Secret(prk), TH1: sha256.Sum256(m1), m1: m1}
}

// must panics on errors of standard library functions that fail only for bad lengths, which are
// constant here.
func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("protocol: %v", err))
	}
	return v
}

// Lengths of an AES-128-GCM key and nonce.
const (
	aeadKeySize   = 16
	aeadNonceSize = 12
)

// aead is a key and the only nonce that it is used with.
type aead struct {
	key   [aeadKeySize]byte
	nonce [aeadNonceSize]byte
}

func (c Channel) derive(domain string, context ...[]byte) aead {
	info := []byte(domain)
	for _, part := range context {
		info = append(info, part...)
	}
	out := must(hkdf.Expand(sha256.New, c.PRK[:], string(info), aeadKeySize+aeadNonceSize))
	return aead{key: [aeadKeySize]byte(out[:aeadKeySize]), nonce: [aeadNonceSize]byte(out[aeadKeySize:])}
}

func (a aead) gcm() cipher.AEAD { return must(cipher.NewGCM(must(aes.NewCipher(a.key[:])))) }

// seal appends the ciphertext to the clear bytes, which are the additional data.
func (a aead) seal(clear, plaintext []byte) []byte {
	return a.gcm().Seal(clear, a.nonce[:], plaintext, clear)
}

func (a aead) open(m []byte, clear int) ([]byte, error) {
	plaintext, err := a.gcm().Open(nil, a.nonce[:], m[clear:], m[:clear])
	if err != nil {
		return nil, protocol.CodeFormat.Errorf("message of kind %d does not open", m[0]>>4)
	}
	return plaintext, nil
}

// header returns the first byte of a message, with capacity for the rest.
func header(kind byte, size int) []byte {
	return append(make([]byte, 0, size), kind<<4|Version)
}

func transcript(first, then []byte) [32]byte {
	h := sha256.New()
	h.Write(first)
	h.Write(then)
	return [32]byte(h.Sum(nil))
}

func (c Channel) keys2() aead { return c.derive(domain.M2, c.TH1[:]) }

func (c Channel) keys3(attempt uint8) aead { return c.derive(domain.M3, []byte{attempt}, c.TH2[:]) }

func (c Channel) keys4(m3 []byte, r ReceiptNonce) aead {
	th3 := transcript(c.TH2[:], m3)
	return c.derive(domain.M4, m3[1:2], r[:], th3[:])
}

// ChallengeOf returns the chal that M2 carries in clear.
func ChallengeOf(m2 []byte) (protocol.Challenge, error) {
	if err := checkKind(m2, KindM2, m2HeaderSize+tagSize); err != nil {
		return protocol.Challenge{}, err
	}
	return protocol.Challenge(m2[1:m2HeaderSize]), nil
}

// SealM2 returns M2 and sets TH2. chal must be the challenge given to [NewChannel].
func (c *Channel) SealM2(chal protocol.Challenge, p2 []byte) []byte {
	clear := append(header(KindM2, m2HeaderSize+len(p2)+tagSize), chal[:]...)
	m2 := c.keys2().seal(clear, p2)
	c.TH2 = transcript(c.m1, m2)
	return m2
}

// OpenM2 opens M2 and sets TH2.
func (c *Channel) OpenM2(m2 []byte) (p2 []byte, err error) {
	if _, err := ChallengeOf(m2); err != nil {
		return nil, err
	}
	if p2, err = c.keys2().open(m2, m2HeaderSize); err != nil {
		return nil, err
	}
	c.TH2 = transcript(c.m1, m2)
	return p2, nil
}

// SealM3 returns M3. Each attempt has its own key.
func (c Channel) SealM3(attempt uint8, p3 []byte) []byte {
	clear := append(header(KindM3, m3HeaderSize+len(p3)+tagSize), attempt)
	return c.keys3(attempt).seal(clear, p3)
}

// OpenM3 opens M3. The caller checks that the attempt is the expected one.
func (c Channel) OpenM3(m3 []byte) (attempt uint8, p3 []byte, err error) {
	if err := checkKind(m3, KindM3, m3HeaderSize+tagSize); err != nil {
		return 0, nil, err
	}
	p3, err = c.keys3(m3[1]).open(m3, m3HeaderSize)
	return m3[1], p3, err
}

// SealM4 returns the M4 that answers m3, which must be an opened M3.
func (c Channel) SealM4(m3 []byte, r ReceiptNonce, p4 []byte) []byte {
	clear := append(header(KindM4, m4HeaderSize+len(p4)+tagSize), m3[1])
	return c.keys4(m3, r).seal(append(clear, r[:]...), p4)
}

// OpenM4 opens the answer to m3, the client's own M3.
func (c Channel) OpenM4(m3, m4 []byte) (p4 []byte, err error) {
	if err := checkKind(m3, KindM3, m3HeaderSize+tagSize); err != nil {
		return nil, err
	}
	if err := checkKind(m4, KindM4, m4HeaderSize+tagSize); err != nil {
		return nil, err
	}
	if m4[1] != m3[1] {
		return nil, protocol.CodeFormat.Errorf("M4 of attempt %d, want %d", m4[1], m3[1])
	}
	return c.keys4(m3, ReceiptNonce(m4[m3HeaderSize:m4HeaderSize])).open(m4, m4HeaderSize)
}

// Secret is a 32-byte secret, ES or PRK. It does not print.
type Secret [32]byte

// Format prevents every verb from printing the bytes.
func (Secret) Format(f fmt.State, _ rune) { secret.Print(f) }

// MarshalText prevents encoders of logs from writing the bytes.
func (Secret) MarshalText() ([]byte, error) { return secret.Text() }
