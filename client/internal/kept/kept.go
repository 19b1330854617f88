// Package kept implements the secrets that a phone stores to prove its user's password: the
// stretching parameters and the phone's own secret DS. It never stores the password.
package kept

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"fmt"

	"countersign/internal/secret"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
)

// Password is the stored part of one enrolled password, PROTOCOL.md §4.1. It prints as [redacted], and
// encodes with DS, for files that only the owner can read:
//
//	{"salt", "memory_kib", "iterations", "parallelism", "secret": DS}
type Password struct {
	secret.Hidden `json:"-"`
	Salt          password.Salt
	Params        password.Params
	DS            password.DeviceSecret
}

// New returns random values.
func New(params password.Params) Password {
	k := Password{Params: params}
	_, _ = rand.Read(k.Salt[:]) // never fails, see crypto/rand
	_, _ = rand.Read(k.DS[:])
	return k
}

// Verifier computes K_pw, which takes about 0.1 s and k.Params.MemoryKiB of memory. It returns
// protocol.CodeFormat for a password that is not UTF-8.
func (k Password) Verifier(client protocol.ClientID, text []byte) (password.Verifier, error) {
	a, err := password.Stretch(string(text), k.Salt, k.Params)
	if err != nil {
		return password.Verifier{}, err
	}
	return k.DS.Bind(client, a).Verifier(), nil
}

// Enrolment wraps a password's verifier for the appliance's key `enrol` with a new ephemeral key.
// The caller sets Root, Enrol and SigningKey of names.
func (k Password) Enrolment(names derive.PasswordImport, text []byte) (*enrol.Password, error) {
	verifier, err := k.Verifier(protocol.ClientIDOf(names.SigningKey), text)
	if err != nil {
		return nil, err
	}
	defer clear(verifier[:])
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making an ephemeral key: %w", err)
	}
	if names.Ephemeral, err = protocol.CompressPoint(ephemeral.PublicKey().Bytes()); err != nil {
		return nil, err
	}
	wrapped, err := password.Wrap(verifier, ephemeral, names)
	if err != nil {
		return nil, err
	}
	return &enrol.Password{
		Salt: k.Salt, MemoryKiB: k.Params.MemoryKiB, Iterations: k.Params.Iterations, Parallelism: k.Params.Parallelism,
		Ephemeral: names.Ephemeral, Wrapped: [enrol.WrappedVerifierSize]byte(wrapped),
	}, nil
}

// Fits reports whether an enrolment was made from k.
func (k Password) Fits(p *enrol.Password) bool {
	return p != nil && p.Salt == k.Salt &&
		k.Params == password.Params{MemoryKiB: p.MemoryKiB, Iterations: p.Iterations, Parallelism: p.Parallelism}
}

type passwordJSON struct {
	Salt        protocol.Base64 `json:"salt"`
	MemoryKiB   uint32          `json:"memory_kib"`
	Iterations  uint32          `json:"iterations"`
	Parallelism uint8           `json:"parallelism"`
	DS          protocol.Base64 `json:"secret"`
}

// MarshalJSON includes DS.
func (k Password) MarshalJSON() ([]byte, error) {
	return json.Marshal(passwordJSON{k.Salt[:], k.Params.MemoryKiB, k.Params.Iterations, k.Params.Parallelism, k.DS[:]})
}

// UnmarshalJSON decodes the output of MarshalJSON.
func (k *Password) UnmarshalJSON(b []byte) error {
	var w passwordJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	if len(w.Salt) != len(k.Salt) || len(w.DS) != len(k.DS) {
		return fmt.Errorf("password: salt or secret has the wrong length")
	}
	*k = Password{
		Salt: password.Salt(w.Salt), DS: password.DeviceSecret(w.DS),
		Params: password.Params{MemoryKiB: w.MemoryKiB, Iterations: w.Iterations, Parallelism: w.Parallelism},
	}
	return k.Params.Check()
}
