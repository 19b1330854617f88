// Package protocol is OA1, the offline-authorization protocol: its messages,
// key schedule, statement, countersignature, decision, certificates and codes,
// exactly as PROTOCOL.md beside this file gives them. It is words only: it keeps no state, opens
// no connection and reads no clock; whoever needs time or randomness passes it in.
//
// What parses marshals back to the same bytes, and what is not canonical does
// not parse. Errors that a peer is told about wrap a [Code].
package protocol

// Version is the protocol version, the low nibble of every message's first byte.
const Version = 1

// Domain strings of PROTOCOL.md §2: each signature, MAC, hash and key
// derivation has its own, so that no output of one can serve as another.
const (
	domainHPKE        = "OA1 hpke v1"
	domainSession     = "OA1 session v1"
	domainM2          = "OA1 m2"
	domainM3          = "OA1 m3"
	domainM4          = "OA1 m4"
	domainChallenge   = "OA1 chal v1"
	domainStatement   = "OA1 statement v1"
	domainCountersign = "OA1 countersign v1"
	domainDecision    = "OA1 decision v1"
	domainKeyCert     = "OA1 keycert v1"
	domainRootCert    = "OA1 rootcert v1"
	domainClientCert  = "OA1 clientcert v1"
	domainClientID    = "OA1 client id v1"
	domainEnrol       = "OA1 enrol v1"
	domainPwBind      = "OA1 pw-bind v1"
	domainPwVerifier  = "OA1 pw-verifier v1"
	domainPwProof     = "OA1 pw-proof v1"
	domainPwEnrol     = "OA1 pw-enrol v1"
	domainRecord      = "OA1 record v1"
	domainSeal        = "OA1 seal v1"
	domainPairwise    = "OA1 pairwise v1"
	domainHandle      = "OA1 handle v1"
)
