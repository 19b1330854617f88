// Package enrol implements activation codes and the bodies by which clients and
// devices enrol and devices renew their certificates (PROTOCOL.md §5).
package enrol

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"

	"countersign/internal/secret"
	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/domain"
	"countersign/protocol/internal/strict"
	"countersign/protocol/trust"
)

// ActivationCode lets its holder enrol once, PROTOCOL.md §5. Its text form is
//
//	OA1-<root hash, 26 base32 characters>-<secret, 20 base32 characters>
//
// in the alphabet of RFC 4648, upper case.
type ActivationCode struct {
	Root   protocol.RootHash // SHA-256(root public key)[0:16] of the root at the time of the invitation
	Secret ActivationSecret  // 100 bits
}

// ActivationSecret is the secret part of an [ActivationCode], as base32
// characters. It does not print.
type ActivationSecret [20]byte

// Format prevents every verb from printing the secret.
func (ActivationSecret) Format(f fmt.State, _ rune) { secret.Print(f) }

const activationPrefix = "OA1"

var base32plain = base32.StdEncoding.WithPadding(base32.NoPadding)

// NewActivationCode returns a code with 100 of the random bits.
func NewActivationCode(root protocol.RootHash, random [13]byte) ActivationCode {
	return ActivationCode{Root: root, Secret: ActivationSecret([]byte(base32plain.EncodeToString(random[:]))[:20])}
}

// String returns the whole code with its secret, for the person who enrols. Never log it.
func (a ActivationCode) String() string {
	return activationPrefix + "-" + base32plain.EncodeToString(a.Root[:]) + "-" + string(a.Secret[:])
}

// ParseActivationCode parses the exact form of String. Errors are CodeFormat and do not repeat the
// code.
func ParseActivationCode(s string) (a ActivationCode, err error) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 || parts[0] != activationPrefix || len(parts[2]) != len(a.Secret) {
		return a, protocol.CodeFormat.Errorf("activation code is not OA1-<26 characters>-<20 characters>")
	}
	root, err := base32plain.DecodeString(parts[1])
	if err != nil || len(root) != len(a.Root) {
		return a, protocol.CodeFormat.Errorf("activation code: root hash is not 26 base32 characters")
	}
	if _, err := base32plain.DecodeString(parts[2] + "AAAA"); err != nil {
		return a, protocol.CodeFormat.Errorf("activation code: secret is not 20 base32 characters")
	}
	a = ActivationCode{Root: protocol.RootHash(root), Secret: ActivationSecret([]byte(parts[2]))}
	// The last character of the hash has two unused bits, and encoding/base32 skips line breaks.
	if a.String() != s {
		return ActivationCode{}, protocol.CodeFormat.Errorf("activation code is not in its canonical form")
	}
	return a, nil
}

// Request is the body of POST /v1/enrol, PROTOCOL.md §5. As JSON its binary
// members are base64url without padding:
//
//	{"activation_code", "signing_key", ?"uv_key", ?"uv_proof", ?"attestation",
//	 ?"password": {"salt", "memory_kib", "iterations", "parallelism", "ephemeral", "wrapped"}, "proof"}
type Request struct {
	ActivationCode ActivationCode
	SigningKey     protocol.PublicKey
	UVKey          *protocol.PublicKey          // nil: none
	UVProof        [protocol.SignatureSize]byte // by UVKey, if there is one
	Attestation    []byte                       // of the UV key; its own format authenticates it, the proofs do not cover it
	Password       *Password                    // nil: none
	Proof          [protocol.SignatureSize]byte // by SigningKey
}

// Password sets a password: the parameters that stretched it, and its verifier wrapped for the
// appliance, PROTOCOL.md §4.1.
type Password struct {
	Salt        [16]byte
	MemoryKiB   uint32
	Iterations  uint32
	Parallelism uint8
	Ephemeral   protocol.PublicKey
	Wrapped     [WrappedVerifierSize]byte // AES-KWP(KEK, K_pw)
}

// WrappedVerifierSize is the length of a 32-byte key under AES-KWP, RFC 5649.
const WrappedVerifierSize = 40

// The minimum Argon2id parameters, PROTOCOL.md §4.1.
const (
	MinPasswordMemoryKiB  = 19 * 1024
	MinPasswordIterations = 2
)

type enrolJSON struct {
	ActivationCode string           `json:"activation_code"`
	SigningKey     protocol.Base64  `json:"signing_key"`
	UVKey          *protocol.Base64 `json:"uv_key,omitempty"`
	UVProof        *protocol.Base64 `json:"uv_proof,omitempty"`
	Attestation    *protocol.Base64 `json:"attestation,omitempty"`
	Password       *passwordJSON    `json:"password,omitempty"`
	Proof          protocol.Base64  `json:"proof"`
}

type passwordJSON struct {
	Salt        protocol.Base64 `json:"salt"`
	MemoryKiB   uint32          `json:"memory_kib"`
	Iterations  uint32          `json:"iterations"`
	Parallelism uint8           `json:"parallelism"`
	Ephemeral   protocol.Base64 `json:"ephemeral"`
	Wrapped     protocol.Base64 `json:"wrapped"`
}

// ClientID returns the id of the client.
func (r Request) ClientID() protocol.ClientID { return protocol.ClientIDOf(r.SigningKey) }

// SigStructure returns the bytes that both proofs sign: a COSE_Sign1 over the SHA-256 of
// deterministic CBOR [activation code, signing key, uv key, eph33, wrapped].
func (r Request) SigStructure() []byte {
	uv, eph, wrapped := []byte{}, []byte{}, []byte{}
	if r.UVKey != nil {
		uv = r.UVKey[:]
	}
	if r.Password != nil {
		eph, wrapped = r.Password.Ephemeral[:], r.Password.Wrapped[:]
	}
	sum := sha256.Sum256(cbor.Marshal([]any{r.ActivationCode.String(), r.SigningKey, uv, eph, wrapped}))
	return protocol.SigStructure(domain.Enrol, sum[:])
}

// Sign fills in the proofs. It uses uv only if the request has a UV key.
func Sign(ctx context.Context, r Request, signing, uv protocol.DigestSigner) (Request, error) {
	digest := sha256.Sum256(r.SigStructure())
	sig, err := signing.SignDigest(ctx, digest[:])
	if err != nil {
		return r, fmt.Errorf("signing enrolment: %w", err)
	}
	if err := strict.Fixed(r.Proof[:], "proof", sig); err != nil || r.UVKey == nil {
		return r, err
	}
	if sig, err = uv.SignDigest(ctx, digest[:]); err != nil {
		return r, fmt.Errorf("signing enrolment with the UV key: %w", err)
	}
	return r, strict.Fixed(r.UVProof[:], "uv_proof", sig)
}

// MarshalJSON returns the wire form.
func (r Request) MarshalJSON() ([]byte, error) {
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

func optional(b []byte) *protocol.Base64 { return (*protocol.Base64)(&b) }

// ParseRequest decodes a body and verifies its proofs. Errors are CodeFormat, or CodeSignature for
// an invalid proof. The caller looks up the activation code.
func ParseRequest(body []byte) (Request, error) {
	var w enrolJSON
	if err := strict.JSON(body, &w); err != nil {
		return Request{}, err
	}
	r, err := w.request()
	if err != nil {
		return Request{}, err
	}
	digest := sha256.Sum256(r.SigStructure())
	if !r.SigningKey.VerifyDigest(digest[:], r.Proof[:]) {
		return Request{}, fmt.Errorf("enrolment: proof is invalid: %w", protocol.CodeSignature)
	}
	if r.UVKey != nil && !r.UVKey.VerifyDigest(digest[:], r.UVProof[:]) {
		return Request{}, fmt.Errorf("enrolment: uv_proof is invalid: %w", protocol.CodeSignature)
	}
	return r, nil
}

func (w enrolJSON) request() (r Request, err error) {
	if r.ActivationCode, err = ParseActivationCode(w.ActivationCode); err != nil {
		return r, err
	}
	if r.SigningKey, err = protocol.ParsePublicKey(w.SigningKey); err != nil {
		return r, fmt.Errorf("signing_key: %w", err)
	}
	if err := strict.Fixed(r.Proof[:], "proof", w.Proof); err != nil {
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

func (w enrolJSON) uv(r *Request) error {
	if (w.UVKey == nil) != (w.UVProof == nil) {
		return protocol.CodeFormat.Errorf("uv_key and uv_proof must come together")
	}
	if w.UVKey == nil {
		return nil
	}
	key, err := protocol.ParsePublicKey(*w.UVKey)
	if err != nil {
		return fmt.Errorf("uv_key: %w", err)
	}
	if key == r.SigningKey {
		return protocol.CodeFormat.Errorf("uv_key is the signing key")
	}
	r.UVKey = &key
	return strict.Fixed(r.UVProof[:], "uv_proof", *w.UVProof)
}

func (w passwordJSON) enrolment() (*Password, error) {
	p := Password{MemoryKiB: w.MemoryKiB, Iterations: w.Iterations, Parallelism: w.Parallelism}
	if p.MemoryKiB < MinPasswordMemoryKiB || p.Iterations < MinPasswordIterations || p.Parallelism < 1 {
		return nil, protocol.CodeFormat.Errorf("password: Argon2id with %d KiB, %d iterations, %d lanes is below the minimum",
			p.MemoryKiB, p.Iterations, p.Parallelism)
	}
	if err := strict.Fixed(p.Salt[:], "password.salt", w.Salt); err != nil {
		return nil, err
	}
	if err := strict.Fixed(p.Wrapped[:], "password.wrapped", w.Wrapped); err != nil {
		return nil, err
	}
	var err error
	if p.Ephemeral, err = protocol.ParsePublicKey(w.Ephemeral); err != nil {
		return nil, fmt.Errorf("password.ephemeral: %w", err)
	}
	return &p, nil
}

// Response is the answer to POST /v1/enrol, PROTOCOL.md §5, as JSON
//
//	{"client_id", "root_key", "next_root_hash", "key_certs": [], "client_cert",
//	 "floors": [{"service", "min_level"}]}
//
// with binary members in base64url without padding.
type Response struct {
	Client       protocol.ClientID
	RootKey      protocol.PublicKey
	NextRootHash [32]byte
	KeyCerts     [][]byte
	ClientCert   []byte
	Floors       []protocol.Floor
}

type enrolResponseJSON struct {
	ClientID     protocol.Base64   `json:"client_id"`
	RootKey      protocol.Base64   `json:"root_key"`
	NextRootHash protocol.Base64   `json:"next_root_hash"`
	KeyCerts     []protocol.Base64 `json:"key_certs"`
	ClientCert   protocol.Base64   `json:"client_cert"`
	Floors       []protocol.Floor  `json:"floors"`
}

// MarshalJSON returns the wire form.
func (r Response) MarshalJSON() ([]byte, error) {
	floors := r.Floors
	if floors == nil {
		floors = []protocol.Floor{}
	}
	return json.Marshal(enrolResponseJSON{
		r.Client[:], r.RootKey[:], r.NextRootHash[:], strict.ToBase64(r.KeyCerts), r.ClientCert, floors,
	})
}

// ParseResponse decodes an answer. Errors are CodeFormat. The client then compares it with the state
// that it resolved before: see [Response.Check].
func ParseResponse(body []byte) (r Response, err error) {
	var w enrolResponseJSON
	if err := strict.JSON(body, &w); err != nil {
		return r, err
	}
	if r.RootKey, err = protocol.ParsePublicKey(w.RootKey); err != nil {
		return r, fmt.Errorf("root_key: %w", err)
	}
	if err := strict.Fixed(r.Client[:], "client_id", w.ClientID); err != nil {
		return r, err
	}
	if err := strict.Fixed(r.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return r, err
	}
	for _, f := range w.Floors {
		if _, ok := f.MinLevel.Factors(); !ok {
			return r, protocol.CodeFormat.Errorf("floor of service %v is level %d", f.Service, f.MinLevel)
		}
	}
	r.KeyCerts, r.ClientCert, r.Floors = strict.FromBase64(w.KeyCerts), w.ClientCert, w.Floors
	return r, nil
}

// Check verifies that the answer fits the request and the state that the client resolved before. It
// returns that state with the answer's KeyCerts, and the client certificate. Errors are CodeFormat
// or CodeCertificate. now is in Unix seconds.
func (r Response) Check(req Request, pinned trust.State, now uint64) (trust.State, trust.ClientCert, error) {
	if r.RootKey != pinned.Root || r.NextRootHash != pinned.NextRootHash {
		return pinned, trust.ClientCert{}, protocol.CodeCertificate.Errorf("enrolment answered with another root")
	}
	pinned = pinned.WithKeyCerts(r.KeyCerts, now)
	keys := trust.Keyring{Root: pinned.Root, KeyCerts: pinned.KeyCerts(trust.UseClientCA), Now: now}
	cert, err := keys.ClientCert(r.ClientCert)
	if err != nil {
		return pinned, trust.ClientCert{}, err
	}
	same := cert.UVKey == nil && req.UVKey == nil || cert.UVKey != nil && req.UVKey != nil && *cert.UVKey == *req.UVKey
	if r.Client != req.ClientID() || cert.SigningKey != req.SigningKey || !same {
		return pinned, trust.ClientCert{}, protocol.CodeCertificate.Errorf("enrolment answered for another client")
	}
	return pinned, cert, nil
}

// DeviceRequest is the body of POST /v1/enrol/device, PROTOCOL.md §5: {"activation_code", "csr"}.
// The caller verifies the CSR's signature.
type DeviceRequest struct {
	ActivationCode ActivationCode
	CSR            string // PEM, one CERTIFICATE REQUEST
}

// DeviceResponse is the answer: {"certificates": [PEM], "trust"}. The device's own certificate comes
// first.
type DeviceResponse struct {
	Certificates []string       `json:"certificates"`
	Trust        trust.Document `json:"trust"`
}

// RenewRequest is the body of POST /v1/renew: {"csr"}.
type RenewRequest struct {
	CSR string `json:"csr"` // PEM, one CERTIFICATE REQUEST
}

// RenewResponse is the answer: {"certificates": [PEM]}.
type RenewResponse struct {
	Certificates []string `json:"certificates"`
}

type deviceEnrolJSON struct {
	ActivationCode string `json:"activation_code"`
	CSR            string `json:"csr"`
}

// MarshalJSON returns the wire form.
func (r DeviceRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(deviceEnrolJSON{r.ActivationCode.String(), r.CSR})
}

// ParseDeviceRequest decodes a body. Errors are CodeFormat.
func ParseDeviceRequest(body []byte) (r DeviceRequest, err error) {
	var w deviceEnrolJSON
	if err := strict.JSON(body, &w); err != nil {
		return r, err
	}
	if r.ActivationCode, err = ParseActivationCode(w.ActivationCode); err != nil {
		return r, err
	}
	r.CSR = w.CSR
	return r, checkPEM("CERTIFICATE REQUEST", w.CSR)
}

// ParseDeviceResponse decodes an answer. Errors are CodeFormat.
func ParseDeviceResponse(body []byte) (r DeviceResponse, err error) {
	var w struct {
		Certificates []string        `json:"certificates"`
		Trust        json.RawMessage `json:"trust"`
	}
	if err := strict.JSON(body, &w); err != nil {
		return r, err
	}
	if r.Trust, err = trust.ParseDocument(w.Trust); err != nil {
		return r, err
	}
	r.Certificates = w.Certificates
	return r, checkPEM("CERTIFICATE", w.Certificates...)
}

// ParseRenewRequest decodes a body. Errors are CodeFormat.
func ParseRenewRequest(body []byte) (r RenewRequest, err error) {
	if err := strict.JSON(body, &r); err != nil {
		return RenewRequest{}, err
	}
	return r, checkPEM("CERTIFICATE REQUEST", r.CSR)
}

// ParseRenewResponse decodes an answer. Errors are CodeFormat.
func ParseRenewResponse(body []byte) (r RenewResponse, err error) {
	if err := strict.JSON(body, &r); err != nil {
		return RenewResponse{}, err
	}
	return r, checkPEM("CERTIFICATE", r.Certificates...)
}

// checkPEM requires at least one text, each exactly one block of this type.
func checkPEM(blockType string, texts ...string) error {
	if len(texts) == 0 {
		return protocol.CodeFormat.Errorf("want a PEM %s", blockType)
	}
	for _, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != blockType || len(rest) != 0 {
			return protocol.CodeFormat.Errorf("want exactly one PEM %s", blockType)
		}
	}
	return nil
}
