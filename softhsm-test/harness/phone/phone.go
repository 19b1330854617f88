// Package phone is a phone made of PROTOCOL.md alone: the protocol package, net
// and net/http. It knows nothing of this project's client, and can be told to say
// what an honest phone would not.
package phone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// Phone is an enrolled client, or a [Stranger].
type Phone struct {
	ID       protocol.ClientID
	Trust    trust.State
	Counter  uint32             // of the newest serial
	Verifier *password.Verifier // K_pw; nil: no password
	Key      Key
	UV       *Key // nil: none
}

// Key is an ECDSA key in memory that signs digests.
type Key struct{ *ecdsa.PrivateKey }

// NewKey makes a P-256 key.
func NewKey() Key {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return Key{k}
}

// Point returns the public key.
func (k Key) Point() protocol.PublicKey {
	p, err := protocol.CompressKey(&k.PublicKey)
	if err != nil {
		panic(err) // it is a point of P-256
	}
	return p
}

// SignDigest implements [protocol.DigestSigner].
func (k Key) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

// Stranger makes a phone that is not enrolled.
func Stranger(pinned trust.State) *Phone {
	key := NewKey()
	return &Phone{Key: key, ID: protocol.ClientIDOf(key.Point()), Trust: pinned}
}

// Next is an application for a service at level 1, with the next serial.
func (p *Phone) Next(service protocol.Service) message.P1 {
	p.Counter++
	return message.P1{Client: p.ID, Serial: NewSerial(p.Counter), Service: service, Level: 1}
}

// NewSerial is a counter and 8 random bytes.
func NewSerial(counter uint32) protocol.Serial {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails, crypto/rand
	return protocol.NewSerial(counter, random)
}

// Session is one authorization as the phone sees it.
type Session struct {
	M1      []byte
	P2      message.P2 // after Open
	phone   *Phone
	root    protocol.RootID
	p1      []byte
	es      message.Secret
	channel message.Channel
	stmt    message.Statement
}

// Apply makes an M1 of a P1, which need not be one that an honest phone would make:
// it is bytes here.
func (p *Phone) Apply(p1 []byte) (*Session, error) {
	kem, ok := p.Trust.Key(trust.UseKEM)
	if !ok {
		return nil, errors.New("phone: no kem key")
	}
	return p.ApplyTo(kem.KeyCert, p1)
}

// ApplyTo is Apply with another kem key or epoch than the trusted one.
func (p *Phone) ApplyTo(kem trust.KeyCert, p1 []byte) (*Session, error) {
	s := &Session{phone: p, root: p.Trust.Root.RootID(), p1: p1}
	var err error
	s.M1, s.es, err = message.SealM1(kem.Recipient(s.root), p1)
	return s, err
}

// Open opens M2.
func (s *Session) Open(m2 []byte) error {
	chal, err := message.ChallengeOf(m2)
	if err != nil {
		return fmt.Errorf("phone: %w", err)
	}
	s.channel = message.NewChannel(s.es, s.M1, chal)
	raw, err := s.channel.OpenM2(m2)
	if err != nil {
		return fmt.Errorf("phone: %w", err)
	}
	if s.P2, err = message.ParseP2(raw); err != nil {
		return fmt.Errorf("phone: %w", err)
	}
	s.stmt = message.NewStatement(s.root, s.p1, chal, raw)
	return nil
}

// Statement is the information that is signed.
func (s *Session) Statement() message.Statement { return s.stmt }

// Seal makes M3 of any P3.
func (s *Session) Seal(attempt uint8, p3 message.P3) []byte {
	return s.channel.SealM3(attempt, p3.Marshal())
}

// Result opens the M4 that answers an M3.
func (s *Session) Result(m3, m4 []byte) (message.P4, error) {
	raw, err := s.channel.OpenM4(m3, m4)
	if err != nil {
		return message.P4{}, fmt.Errorf("phone: %w", err)
	}
	return message.ParseP4(raw)
}

func unixNow() uint64 { return uint64(time.Now().Unix()) }

// OpenM3 opens an M3 of this session, so that a test can alter its content.
func (s *Session) OpenM3(m3 []byte) (attempt uint8, p3 []byte, err error) {
	return s.channel.OpenM3(m3)
}
