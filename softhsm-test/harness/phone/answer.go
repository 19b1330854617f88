package phone

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/password"
)

// Means are what a phone has beside its signing key; the zero value is nothing.
type Means struct {
	Verifier *password.Verifier // K_pw, as if a password had been stretched to it; nil: none
	UV       bool               // a second key
}

// Full is a phone with a random password and a UV key.
func Full() Means { return Means{Verifier: NewVerifier(), UV: true} }

// NewVerifier returns the K_pw of an unknown password.
func NewVerifier() *password.Verifier {
	var v password.Verifier
	_, _ = rand.Read(v[:]) // never fails, crypto/rand
	return &v
}

// Give gives a [Stranger] what it is to enrol with.
func (p *Phone) Give(m Means) *Phone {
	p.Verifier = m.Verifier
	if m.UV {
		k := NewKey()
		p.UV = &k
	}
	return p
}

// Answer is what goes into an M3, honest or not.
type Answer struct {
	Attempt uint8
	message.Approval
}

// Honest is what an honest phone answers to the challenge with its first attempt,
// and the right password.
func (s *Session) Honest(v protocol.Verdict) Answer {
	a := Answer{Approval: message.Approval{Verdict: v, Slot: protocol.SlotSigning}}
	if v != protocol.Approve {
		return a
	}
	if s.P2.Factors.Has(protocol.FactorUV) && s.phone.UV != nil {
		a.Slot = protocol.SlotUV
	}
	if s.P2.Factors.Has(protocol.FactorPassword) && s.phone.Verifier != nil {
		a.Proof = s.Proof()
	}
	return a
}

// Proof returns the proof of the right password.
func (s *Session) Proof() []byte {
	proof := s.phone.Verifier.Proof(s.stmt.Hash())
	return proof[:]
}

// Guess is Honest with a password that is wrong.
func (s *Session) Guess(attempt uint8) Answer {
	a := s.Honest(protocol.Approve)
	a.Attempt, a.Proof = attempt, make([]byte, message.ProofSize)
	_, _ = rand.Read(a.Proof) // never fails, crypto/rand
	return a
}

// Countersign makes M3 of an honest first attempt.
func (s *Session) Countersign(ctx context.Context, v protocol.Verdict) ([]byte, error) {
	return s.Sign(ctx, s.Honest(v))
}

// Sign makes M3 of an answer, with the key of its slot.
func (s *Session) Sign(ctx context.Context, a Answer) ([]byte, error) {
	signer := s.phone.Key
	if a.Slot == protocol.SlotUV {
		if s.phone.UV == nil {
			return nil, errors.New("phone: no UV key")
		}
		signer = *s.phone.UV
	}
	sig, err := message.Countersign(ctx, signer, s.stmt, a.Approval)
	if err != nil {
		return nil, fmt.Errorf("phone: %w", err)
	}
	return s.Seal(a.Attempt, message.P3{Verdict: a.Verdict, Signature: sig, Slot: a.Slot, Proof: a.Proof}), nil
}
