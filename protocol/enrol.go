package protocol

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// EnrolRequest is the body of POST /v1/enrol, PROTOCOL.md §5. As JSON its binary
// members are base64url without padding:
//
//	{"activation_code", "signing_key", ?"uv_key", ?"uv_proof", ?"attestation",
//	 ?"password": {"salt", "memory_kib", "iterations", "parallelism", "ephemeral", "wrapped"}, "proof"}
type EnrolRequest struct {
	ActivationCode ActivationCode
	SigningKey     PublicKey
	UVKey          *PublicKey          // nil: none
	UVProof        [SignatureSize]byte // by UVKey, if there is one
	Attestation    []byte              // of the UV key; no proof covers it, its own format authenticates it
	Password       *PasswordEnrolment  // nil: none
	Proof          [SignatureSize]byte // by SigningKey
}

// PasswordEnrolment sets a password: how it was stretched, and its verifier
// wrapped for the appliance, PROTOCOL.md §4.1.
type PasswordEnrolment struct {
	Salt        [16]byte
	MemoryKiB   uint32
	Iterations  uint32
	Parallelism uint8
	Ephemeral   PublicKey
	Wrapped     [WrappedVerifierSize]byte // AES-KWP(KEK, K_pw)
}

// WrappedVerifierSize is the length of a 32-byte key under AES-KWP, RFC 5649.
const WrappedVerifierSize = 40

// The least Argon2id parameters, PROTOCOL.md §4.1.
const (
	MinPasswordMemoryKiB  = 19 * 1024
	MinPasswordIterations = 2
)

type enrolJSON struct {
	ActivationCode string        `json:"activation_code"`
	SigningKey     Base64        `json:"signing_key"`
	UVKey          *Base64       `json:"uv_key,omitempty"`
	UVProof        *Base64       `json:"uv_proof,omitempty"`
	Attestation    *Base64       `json:"attestation,omitempty"`
	Password       *passwordJSON `json:"password,omitempty"`
	Proof          Base64        `json:"proof"`
}

type passwordJSON struct {
	Salt        Base64 `json:"salt"`
	MemoryKiB   uint32 `json:"memory_kib"`
	Iterations  uint32 `json:"iterations"`
	Parallelism uint8  `json:"parallelism"`
	Ephemeral   Base64 `json:"ephemeral"`
	Wrapped     Base64 `json:"wrapped"`
}

// ClientID is the id the client gets.
func (r EnrolRequest) ClientID() ClientID { return ClientIDOf(r.SigningKey) }

// SigStructure is what both proofs sign: a COSE_Sign1 over the SHA-256 of
// det-CBOR [activation code, signing key, uv key, eph33, wrapped].
func (r EnrolRequest) SigStructure() []byte {
	eph, wrapped := []byte{}, []byte{}
	if r.Password != nil {
		eph, wrapped = r.Password.Ephemeral[:], r.Password.Wrapped[:]
	}
	sum := sha256.Sum256(marshal([]any{r.ActivationCode.String(), r.SigningKey, optionalKey(r.UVKey), eph, wrapped}))
	return SigStructure(domainEnrol, sum[:])
}

// SignEnrol fills in the proofs. uv is not used without a UV key.
func SignEnrol(ctx context.Context, r EnrolRequest, signing, uv DigestSigner) (EnrolRequest, error) {
	digest := sha256.Sum256(r.SigStructure())
	sig, err := signing.SignDigest(ctx, digest[:])
	if err != nil {
		return r, fmt.Errorf("signing enrolment: %w", err)
	}
	if err := fixed(r.Proof[:], "proof", sig); err != nil || r.UVKey == nil {
		return r, err
	}
	if sig, err = uv.SignDigest(ctx, digest[:]); err != nil {
		return r, fmt.Errorf("signing enrolment with the UV key: %w", err)
	}
	return r, fixed(r.UVProof[:], "uv_proof", sig)
}

// MarshalJSON writes the body as on the wire.
func (r EnrolRequest) MarshalJSON() ([]byte, error) {
	w := enrolJSON{ActivationCode: r.ActivationCode.String(), SigningKey: r.SigningKey[:], Proof: r.Proof[:]}
	if r.UVKey != nil {
		w.UVKey, w.UVProof = optional(r.UVKey[:]), optional(r.UVProof[:])
	}
	if r.Attestation != nil {
		w.Attestation = optional(r.Attestation)
	}
	if p := r.Password; p != nil {
		w.Password = &passwordJSON{p.Salt[:], p.MemoryKiB, p.Iterations, p.Parallelism, p.Ephemeral[:], p.Wrapped[:]}
	}
	return json.Marshal(w)
}

func optional(b []byte) *Base64 { return (*Base64)(&b) }

// ParseEnrolRequest reads a body and verifies its proofs: CodeFormat, or
// CodeSignature for a proof that is not good. Whether the activation code is known
// is for the caller to find out.
func ParseEnrolRequest(body []byte) (EnrolRequest, error) {
	var w enrolJSON
	if err := strictJSON(body, &w); err != nil {
		return EnrolRequest{}, err
	}
	r, err := w.request()
	if err != nil {
		return EnrolRequest{}, err
	}
	digest := sha256.Sum256(r.SigStructure())
	if !r.SigningKey.VerifyDigest(digest[:], r.Proof[:]) {
		return EnrolRequest{}, fmt.Errorf("enrolment: proof is not good: %w", CodeSignature)
	}
	if r.UVKey != nil && !r.UVKey.VerifyDigest(digest[:], r.UVProof[:]) {
		return EnrolRequest{}, fmt.Errorf("enrolment: uv_proof is not good: %w", CodeSignature)
	}
	return r, nil
}

func (w enrolJSON) request() (r EnrolRequest, err error) {
	if r.ActivationCode, err = ParseActivationCode(w.ActivationCode); err != nil {
		return r, err
	}
	if r.SigningKey, err = ParsePublicKey(w.SigningKey); err != nil {
		return r, fmt.Errorf("signing_key: %w", err)
	}
	if err := fixed(r.Proof[:], "proof", w.Proof); err != nil {
		return r, err
	}
	if w.Attestation != nil {
		r.Attestation = *w.Attestation
	}
	if w.Password != nil {
		if r.Password, err = w.Password.enrolment(); err != nil {
			return r, err
		}
	}
	return r, w.uv(&r)
}

func (w enrolJSON) uv(r *EnrolRequest) error {
	if (w.UVKey == nil) != (w.UVProof == nil) {
		return formatError("uv_key and uv_proof come together")
	}
	if w.UVKey == nil {
		return nil
	}
	key, err := ParsePublicKey(*w.UVKey)
	if err != nil {
		return fmt.Errorf("uv_key: %w", err)
	}
	if key == r.SigningKey {
		return formatError("uv_key is the signing key")
	}
	r.UVKey = &key
	return fixed(r.UVProof[:], "uv_proof", *w.UVProof)
}

func (w passwordJSON) enrolment() (*PasswordEnrolment, error) {
	p := PasswordEnrolment{MemoryKiB: w.MemoryKiB, Iterations: w.Iterations, Parallelism: w.Parallelism}
	if p.MemoryKiB < MinPasswordMemoryKiB || p.Iterations < MinPasswordIterations || p.Parallelism < 1 {
		return nil, formatError("password: Argon2id with %d KiB, %d iterations, %d lanes is below the floor",
			p.MemoryKiB, p.Iterations, p.Parallelism)
	}
	if err := fixed(p.Salt[:], "password.salt", w.Salt); err != nil {
		return nil, err
	}
	if err := fixed(p.Wrapped[:], "password.wrapped", w.Wrapped); err != nil {
		return nil, err
	}
	var err error
	if p.Ephemeral, err = ParsePublicKey(w.Ephemeral); err != nil {
		return nil, fmt.Errorf("password.ephemeral: %w", err)
	}
	return &p, nil
}
