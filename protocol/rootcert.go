package protocol

import (
	"context"
	"crypto/sha256"
	"fmt"
)

// RootCert introduces root number n and commits to the key of n+1 by its hash,
// PROTOCOL.md §2.2. It travels as
//
//	COSE_Sign1 by root n itself, external_aad "OA1 rootcert v1", payload
//	{1: n, 2: key bstr33, 3: SHA-256(key of n+1) bstr32, 4: reason uint}
type RootCert struct {
	Number   uint64    `cbor:"1,keyasint"`
	Key      PublicKey `cbor:"2,keyasint"`
	NextHash [32]byte  `cbor:"3,keyasint"`
	Reason   uint64    `cbor:"4,keyasint"`
}

// SignRootCert makes a certificate; signer holds r.Key.
func SignRootCert(ctx context.Context, signer DigestSigner, r RootCert) ([]byte, error) {
	b, err := sign1(ctx, signer, domainRootCert, marshal(r), nil)
	if err != nil {
		return nil, fmt.Errorf("signing certificate of root %d: %w", r.Number, err)
	}
	return b, nil
}

// VerifyRootCert reads a certificate and checks the signature by the key in it:
// CodeFormat or CodeCertificate. That says nothing yet of whether the key is
// one to trust: see [FollowRoots].
func VerifyRootCert(b []byte) (RootCert, error) {
	s, _, err := parseSign1(b, false)
	if err != nil {
		return RootCert{}, err
	}
	var r RootCert
	if err := unmarshalExact(s.Payload, &r, 1, 2, 3, 4); err != nil {
		return RootCert{}, err
	}
	if !s.verify(r.Key, domainRootCert) {
		return RootCert{}, certificateError("root certificate %d is not signed by its own key", r.Number)
	}
	return r, nil
}

// follows says whether this is the root that number n committed to with next.
func (r RootCert) follows(n uint64, next [32]byte) bool {
	return r.Number == n+1 && sha256.Sum256(r.Key[:]) == next
}

// FollowRoots verifies certificates that each follow the one before, the first
// of them the root pinned by number and next, and gives the last:
// CodeCertificate where the chain breaks. certs must not be empty.
func FollowRoots(number uint64, next [32]byte, certs [][]byte) (RootCert, error) {
	last := RootCert{Number: number, NextHash: next}
	if len(certs) == 0 {
		return last, certificateError("no root certificate")
	}
	for _, b := range certs {
		r, err := VerifyRootCert(b)
		if err != nil {
			return last, err
		}
		if !r.follows(last.Number, last.NextHash) {
			return last, certificateError("root certificate %d does not follow root %d", r.Number, last.Number)
		}
		last = r
	}
	return last, nil
}
