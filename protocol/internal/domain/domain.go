// Package domain defines the domain strings of PROTOCOL.md §2. Each signature, MAC, hash and key
// derivation has its own, so that the output of one cannot serve as another.
package domain

import (
	"crypto/sha256"

	"countersign/internal/kem"
)

// The domain strings.
const (
	HPKE        = "OA1 hpke v1"
	Session     = "OA1 session v1"
	M2          = "OA1 m2"
	M3          = "OA1 m3"
	M4          = "OA1 m4"
	Challenge   = "OA1 chal v1"
	Statement   = "OA1 statement v1"
	Countersign = "OA1 countersign v1"
	Decision    = "OA1 decision v1"
	KeyCert     = "OA1 keycert v1"
	RootCert    = "OA1 rootcert v1"
	ClientCert  = "OA1 clientcert v1"
	ClientID    = "OA1 client id v1"
	Enrol       = "OA1 enrol v1"
	PwBind      = "OA1 pw-bind v1"
	PwVerifier  = "OA1 pw-verifier v1"
	PwProof     = "OA1 pw-proof v1"
	PwEnrol     = "OA1 pw-enrol v1"
	Record      = "OA1 record v1"
	Seal        = "OA1 seal v1"
	Pairwise    = "OA1 pairwise v1"
	Handle      = "OA1 handle v1"
	KEM2        = kem.Domain
)

// All lists every domain string.
var All = []string{
	HPKE, Session, M2, M3, M4, Challenge, Statement, Countersign, Decision, KeyCert, RootCert,
	ClientCert, ClientID, Enrol, PwBind, PwVerifier, PwProof, PwEnrol, Record, Seal, Pairwise, Handle, KEM2,
}

// Hash returns SHA-256(domain || parts).
func Hash(domain string, parts ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte(domain))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
