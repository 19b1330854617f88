// Package message implements the messages of an authorization: M1 to M4 and ME
// with their payloads P1 to P4, the keys of a challenge, the statement and its
// countersignature, and the frames of a wire link (PROTOCOL.md §3 and §5).
package message

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"countersign/internal/kem"
	"countersign/protocol"
	"countersign/protocol/internal/domain"
)

// Version is the protocol version, the low nibble of every message's first byte.
const Version = 1

// The kinds of messages on the near-field link: the high nibble of byte 0.
const (
	KindM1        = 0x1
	KindM2        = 0x2
	KindM3        = 0x3
	KindM4        = 0x4
	KindKeyUpdate = 0x5
	KindLinkError = 0xE
)

// Kind returns the kind of message m. Its error is [protocol.CodeVersion] for another version and
// [protocol.CodeFormat] for an unknown kind. It reads the first byte only.
func Kind(m []byte) (byte, error) {
	if len(m) == 0 {
		return 0, protocol.CodeFormat.Errorf("empty message")
	}
	kind, version := m[0]>>4, m[0]&15
	if version != Version {
		return 0, fmt.Errorf("protocol version %d: %w", version, protocol.CodeVersion)
	}
	if (kind < KindM1 || kind > KindKeyUpdate) && kind != KindLinkError {
		return 0, protocol.CodeFormat.Errorf("message kind %d", kind)
	}
	return kind, nil
}

// checkKind also checks the minimum length.
func checkKind(m []byte, want byte, least int) error {
	kind, err := Kind(m)
	if err != nil {
		return err
	}
	if kind != want || len(m) < least {
		return protocol.CodeFormat.Errorf("message of kind %d and %d bytes, want kind %d and %d bytes or more", kind, len(m), want, least)
	}
	return nil
}

// Lengths in bytes. A message is its clear header, the ciphertext, and the tag.
const (
	tagSize      = 16
	m1HeaderSize = 2
	m1ClearSize  = m1HeaderSize + len(protocol.PublicKey{})
	m2HeaderSize = 1 + len(protocol.Challenge{})
	m3HeaderSize = 2
	m4HeaderSize = m3HeaderSize + len(ReceiptNonce{})
)

// epochModulus: se carries the kem epoch modulo 64.
const epochModulus = 64

// M1 is an APPLY with a valid header.
type M1 struct {
	Suite uint8
	// Epoch is the kem epoch mod 64.
	Epoch uint8

	enc []byte // HPKE enc, 65 bytes
	raw []byte
}

// ParseM1 checks everything of an M1 that needs no key. Errors are CodeFormat, or CodeVersion for
// another version or suite. The result shares memory with b.
func ParseM1(b []byte) (M1, error) {
	if err := checkKind(b, KindM1, m1HeaderSize); err != nil {
		return M1{}, err
	}
	m := M1{Suite: b[1]/epochModulus + 1, Epoch: b[1] % epochModulus, raw: b}
	if err := checkSuite(m.Suite); err != nil {
		return M1{}, err
	}
	if len(b) < m1ClearSize+tagSize {
		return M1{}, protocol.CodeFormat.Errorf("M1 of %d bytes", len(b))
	}
	point, err := protocol.PublicKey(b[m1HeaderSize:m1ClearSize]).ECDH()
	if err != nil {
		return M1{}, fmt.Errorf("M1: %w", err)
	}
	m.enc = point.Bytes()
	return m, nil
}

// Open decrypts P1 with the kem key of the epoch in se. root is the root that certified the key. It returns the errors of
// the key unchanged, CodeVersion if the key is of another suite, and CodeFormat if decryption fails.
func (m M1) Open(key KEM, root protocol.RootID) (p1 []byte, es Secret, err error) {
	if m.Suite != key.Suite() {
		return nil, es, fmt.Errorf("suite %d for a kem key of suite %d: %w", m.Suite, key.Suite(), protocol.CodeVersion)
	}
	shared, err := key.Decap(m.enc)
	if err != nil {
		return nil, es, fmt.Errorf("opening M1: %w", err)
	}
	c := newContext(m.Suite, shared, hpkeInfo(root))
	if p1, err = c.gcm().Open(nil, c.nonce[:], m.raw[m1ClearSize:], m.raw[:m1HeaderSize]); err != nil {
		return nil, es, protocol.CodeFormat.Errorf("M1 does not open")
	}
	return p1, c.session(), nil
}

// Recipient is what a client knows of a kem epoch.
type Recipient struct {
	Root  protocol.RootID // certified the key
	Suite uint8           // of the KeyCert: 1 or 2
	Epoch uint64
	Key   protocol.PublicKey
}

// SealM1 returns an M1 for a kem epoch, and ES. It returns CodeVersion for another suite and CodeFormat for a bad key.
func SealM1(to Recipient, p1 []byte) (m1 []byte, es Secret, err error) {
	if err := checkSuite(to.Suite); err != nil {
		return nil, es, err
	}
	public, err := to.Key.ECDH()
	if err != nil {
		return nil, es, fmt.Errorf("kem key: %w", err)
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, es, fmt.Errorf("sealing M1: %w", err)
	}
	z, err := ephemeral.ECDH(public)
	if err != nil {
		return nil, es, fmt.Errorf("sealing M1: %w", err)
	}
	defer clear(z)
	enc := ephemeral.PublicKey().Bytes()
	encC, err := protocol.CompressPoint(enc)
	if err != nil {
		return nil, es, fmt.Errorf("sealing M1: %w", err)
	}
	c := newContext(to.Suite, kem.ID(to.Suite).Secret(z, append(enc, public.Bytes()...)), hpkeInfo(to.Root))
	head := []byte{KindM1<<4 | Version, (to.Suite-1)*epochModulus | byte(to.Epoch%epochModulus)}
	m1 = append(bytes.Clone(head), encC[:]...)
	return c.gcm().Seal(m1, c.nonce[:], p1, head), c.session(), nil
}

func hpkeInfo(root protocol.RootID) []byte { return append([]byte(domain.HPKE), root[:]...) }

// LinkError is an ME. The device makes it; it is advisory and not authenticated.
type LinkError struct {
	Code protocol.Code
	// Retry is in seconds.
	Retry uint8
}

const linkErrorSize = 3

// Marshal returns the 3 bytes of an ME.
func (e LinkError) Marshal() []byte {
	return []byte{KindLinkError<<4 | Version, byte(e.Code), e.Retry}
}

// ParseLinkError parses an ME.
func ParseLinkError(b []byte) (LinkError, error) {
	if err := checkKind(b, KindLinkError, linkErrorSize); err != nil {
		return LinkError{}, err
	}
	if len(b) != linkErrorSize {
		return LinkError{}, protocol.CodeFormat.Errorf("ME of %d bytes", len(b))
	}
	return LinkError{Code: protocol.Code(b[1]), Retry: b[2]}, nil
}

// MaxFrame is the longest message on a wire link, in bytes, PROTOCOL.md §5.
const MaxFrame = 2048

const frameHead = 2

// ReadFrame reads one message of a wire link: 2 bytes of big-endian length, then the message. It
// returns [io.EOF] at the end between messages and [io.ErrUnexpectedEOF] within one. After
// CodeFormat, for an empty or oversized message, the caller must close the link.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("reading frame length: %w", err)
	}
	n := binary.BigEndian.Uint16(head[:])
	if n == 0 || n > MaxFrame {
		return nil, protocol.CodeFormat.Errorf("frame of %d bytes: want 1 to %d", n, MaxFrame)
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading frame: %w", err)
	}
	return msg, nil
}

// WriteFrame writes length and message in one Write. It returns CodeFormat if the message is empty
// or too long.
func WriteFrame(w io.Writer, msg []byte) error {
	if len(msg) == 0 || len(msg) > MaxFrame {
		return protocol.CodeFormat.Errorf("message of %d bytes: want 1 to %d", len(msg), MaxFrame)
	}
	frame := make([]byte, frameHead, frameHead+len(msg))
	binary.BigEndian.PutUint16(frame, uint16(len(msg)))
	if _, err := w.Write(append(frame, msg...)); err != nil {
		return fmt.Errorf("writing frame: %w", err)
	}
	return nil
}
