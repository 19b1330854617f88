package protocol

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
)

// ActivationCode lets its holder enrol once, PROTOCOL.md §5. It is written
//
//	OA1-<root hash, 26 base32 characters>-<secret, 20 base32 characters>
//
// in the alphabet of RFC 4648, upper case.
type ActivationCode struct {
	Root   RootHash         // SHA-256(root public key)[0:16], of the root when the code was made
	Secret ActivationSecret // 100 bits
}

// ActivationSecret is the secret part of an [ActivationCode], as base32
// characters. It does not print.
type ActivationSecret [20]byte

func (ActivationSecret) String() string { return redacted }

// GoString keeps %#v from printing the secret.
func (ActivationSecret) GoString() string { return redacted }

const redacted = "[redacted]"

const activationPrefix = "OA1"

var base32plain = base32.StdEncoding.WithPadding(base32.NoPadding)

// NewActivationCode makes a code of 13 random bytes, of which 100 bits count.
func NewActivationCode(root RootHash, random [13]byte) ActivationCode {
	return ActivationCode{Root: root, Secret: ActivationSecret([]byte(base32plain.EncodeToString(random[:]))[:20])}
}

// String writes the whole code, secret included: it is for the person who
// enrols, never for a log.
func (a ActivationCode) String() string {
	return activationPrefix + "-" + base32plain.EncodeToString(a.Root[:]) + "-" + string(a.Secret[:])
}

// ParseActivationCode reads what String writes, in exactly that form: CodeFormat.
// The error does not repeat the code.
func ParseActivationCode(s string) (a ActivationCode, err error) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 || parts[0] != activationPrefix || len(parts[2]) != len(a.Secret) {
		return a, formatError("activation code is not OA1-<26 characters>-<20 characters>")
	}
	root, err := base32plain.DecodeString(parts[1])
	if err != nil || len(root) != len(a.Root) {
		return a, formatError("activation code: root hash is not 26 base32 characters")
	}
	if _, err := base32plain.DecodeString(parts[2] + "AAAA"); err != nil {
		return a, formatError("activation code: secret is not 20 base32 characters")
	}
	a = ActivationCode{Root: RootHash(root), Secret: ActivationSecret([]byte(parts[2]))}
	// The last character of the hash has two bits to spare, and the library skips line breaks.
	if a.String() != s {
		return ActivationCode{}, formatError("activation code is not in its canonical form")
	}
	return a, nil
}

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

// EnrolResponse is the answer of POST /v1/enrol, PROTOCOL.md §5, as JSON
//
//	{"client_id", "root_key", "next_root_hash", "key_certs": [], "client_cert",
//	 "floors": [{"service", "min_level"}]}
//
// with binary members in base64url without padding.
type EnrolResponse struct {
	Client       ClientID
	RootKey      PublicKey
	NextRootHash [32]byte
	KeyCerts     [][]byte
	ClientCert   []byte
	Floors       []Floor
}

// Floor is the least level of a service, for the client's own table.
type Floor struct {
	Service  Service `json:"service"`
	MinLevel Level   `json:"min_level"`
}

type enrolResponseJSON struct {
	ClientID     Base64   `json:"client_id"`
	RootKey      Base64   `json:"root_key"`
	NextRootHash Base64   `json:"next_root_hash"`
	KeyCerts     []Base64 `json:"key_certs"`
	ClientCert   Base64   `json:"client_cert"`
	Floors       []Floor  `json:"floors"`
}

// MarshalJSON writes the answer as on the wire.
func (r EnrolResponse) MarshalJSON() ([]byte, error) {
	floors := r.Floors
	if floors == nil {
		floors = []Floor{}
	}
	return json.Marshal(enrolResponseJSON{
		r.Client[:], r.RootKey[:], r.NextRootHash[:], toBase64(r.KeyCerts), r.ClientCert, floors,
	})
}

// ParseEnrolResponse reads an answer: CodeFormat. The client then holds it
// against the Trust it resolved before, see [EnrolResponse.Check].
func ParseEnrolResponse(body []byte) (r EnrolResponse, err error) {
	var w enrolResponseJSON
	if err := strictJSON(body, &w); err != nil {
		return r, err
	}
	if r.RootKey, err = ParsePublicKey(w.RootKey); err != nil {
		return r, fmt.Errorf("root_key: %w", err)
	}
	if err := fixed(r.Client[:], "client_id", w.ClientID); err != nil {
		return r, err
	}
	if err := fixed(r.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return r, err
	}
	for _, f := range w.Floors {
		if _, ok := f.MinLevel.Factors(); !ok {
			return r, formatError("floor of service %v is level %d", f.Service, f.MinLevel)
		}
	}
	r.KeyCerts, r.ClientCert, r.Floors = fromBase64(w.KeyCerts), w.ClientCert, w.Floors
	return r, nil
}

// Check says whether the answer fits the request and the trust the client
// resolved before it, and gives that trust with the answer's KeyCerts and the
// client certificate: CodeFormat or CodeCertificate. now is Unix seconds.
func (r EnrolResponse) Check(req EnrolRequest, trust Trust, now uint64) (Trust, ClientCert, error) {
	if r.RootKey != trust.Root || r.NextRootHash != trust.NextRootHash {
		return trust, ClientCert{}, certificateError("enrolment answered with another root")
	}
	trust = trust.withKeyCerts(r.KeyCerts, now)
	p, err := parseClientCert(r.ClientCert)
	if err != nil {
		return trust, ClientCert{}, err
	}
	keys := Keyring{Root: trust.Root, KeyCerts: trust.KeyCerts(UseClientCA), Now: now}
	if err := (checkedEvidence{cert: p}).checkCertificate(keys); err != nil {
		return trust, ClientCert{}, err
	}
	same := p.UVKey == nil && req.UVKey == nil || p.UVKey != nil && req.UVKey != nil && *p.UVKey == *req.UVKey
	if r.Client != req.ClientID() || p.SigningKey != req.SigningKey || !same {
		return trust, ClientCert{}, certificateError("enrolment answered for another client")
	}
	return trust, p.ClientCert, nil
}

// DeviceEnrolRequest is the body of POST /v1/enrol/device, PROTOCOL.md §5:
// {"activation_code", "csr"}. The request's own signature is for the caller.
type DeviceEnrolRequest struct {
	ActivationCode ActivationCode
	CSR            string // PEM, one CERTIFICATE REQUEST
}

// DeviceEnrolResponse answers it: {"certificates": [PEM], "trust"}. The device's own
// certificate comes first.
type DeviceEnrolResponse struct {
	Certificates []string      `json:"certificates"`
	Trust        TrustDocument `json:"trust"`
}

// RenewRequest is the body of POST /v1/renew: {"csr"}.
type RenewRequest struct {
	CSR string `json:"csr"` // PEM, one CERTIFICATE REQUEST
}

// RenewResponse answers it: {"certificates": [PEM]}.
type RenewResponse struct {
	Certificates []string `json:"certificates"`
}

type deviceEnrolJSON struct {
	ActivationCode string `json:"activation_code"`
	CSR            string `json:"csr"`
}

// MarshalJSON writes the body as on the wire.
func (r DeviceEnrolRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(deviceEnrolJSON{r.ActivationCode.String(), r.CSR})
}

// ParseDeviceEnrolRequest reads a body: CodeFormat.
func ParseDeviceEnrolRequest(body []byte) (r DeviceEnrolRequest, err error) {
	var w deviceEnrolJSON
	if err := strictJSON(body, &w); err != nil {
		return r, err
	}
	if r.ActivationCode, err = ParseActivationCode(w.ActivationCode); err != nil {
		return r, err
	}
	r.CSR = w.CSR
	return r, checkPEM("CERTIFICATE REQUEST", w.CSR)
}

// ParseDeviceEnrolResponse reads an answer: CodeFormat.
func ParseDeviceEnrolResponse(body []byte) (r DeviceEnrolResponse, err error) {
	var w struct {
		Certificates []string        `json:"certificates"`
		Trust        json.RawMessage `json:"trust"`
	}
	if err := strictJSON(body, &w); err != nil {
		return r, err
	}
	if r.Trust, err = ParseTrustDocument(w.Trust); err != nil {
		return r, err
	}
	r.Certificates = w.Certificates
	return r, checkPEM("CERTIFICATE", w.Certificates...)
}

// ParseRenewRequest reads a body: CodeFormat.
func ParseRenewRequest(body []byte) (r RenewRequest, err error) {
	if err := strictJSON(body, &r); err != nil {
		return RenewRequest{}, err
	}
	return r, checkPEM("CERTIFICATE REQUEST", r.CSR)
}

// ParseRenewResponse reads an answer: CodeFormat.
func ParseRenewResponse(body []byte) (r RenewResponse, err error) {
	if err := strictJSON(body, &r); err != nil {
		return RenewResponse{}, err
	}
	return r, checkPEM("CERTIFICATE", r.Certificates...)
}

// checkPEM requires at least one text, each of exactly one block of this type.
func checkPEM(blockType string, texts ...string) error {
	if len(texts) == 0 {
		return formatError("no PEM %s", blockType)
	}
	for _, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != blockType || len(rest) != 0 {
			return formatError("not one PEM %s", blockType)
		}
	}
	return nil
}
