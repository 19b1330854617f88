package protocol

import (
	"context"
	"fmt"
)

// Use is what a certified key is for, field 2 of a [KeyCert].
type Use uint8

// The uses of PROTOCOL.md §2.2.
const (
	UseKEM      Use = 1
	UseDecision Use = 2
	UseCA       Use = 3
	UseEnrol    Use = 4
	UseClientCA Use = 5
)

var useNames = map[Use]string{
	UseKEM: "kem", UseDecision: "decision", UseCA: "ca", UseEnrol: "enrol", UseClientCA: "client-ca",
}

func (u Use) String() string {
	if s, ok := useNames[u]; ok {
		return s
	}
	return fmt.Sprintf("use %d", uint8(u))
}

// ParseUse reads the name that String writes.
func ParseUse(s string) (Use, error) {
	for u, name := range useNames {
		if name == s {
			return u, nil
		}
	}
	return 0, formatError("key use %q", s)
}

// KeyCert certifies one epoch of one of the appliance's keys under a root,
// PROTOCOL.md §2.2. It travels as
//
//	COSE_Sign1 by root, external_aad "OA1 keycert v1", payload
//	{1: epoch, 2: use, 3: key bstr33, 4: not-before, 5: not-after, ?6: minimum epoch}
type KeyCert struct {
	Epoch     uint64    `cbor:"1,keyasint"`
	Use       Use       `cbor:"2,keyasint"`
	Key       PublicKey `cbor:"3,keyasint"`
	NotBefore uint64    `cbor:"4,keyasint"`           // Unix seconds
	NotAfter  uint64    `cbor:"5,keyasint"`           // Unix seconds, the last good one
	MinEpoch  *uint64   `cbor:"6,keyasint,omitempty"` // rules out every smaller epoch of this use
}

const (
	maxEpochStep = 63        // an epoch travels modulo 64
	clockSlack   = 24 * 3600 // seconds that a not-before may lie ahead
	kemGrace     = 30 * clockSlack
)

// SignKeyCert makes a certificate; signer is the root key.
func SignKeyCert(ctx context.Context, signer DigestSigner, k KeyCert) ([]byte, error) {
	b, err := sign1(ctx, signer, domainKeyCert, marshal(k), nil)
	if err != nil {
		return nil, fmt.Errorf("signing key certificate of %v epoch %d: %w", k.Use, k.Epoch, err)
	}
	return b, nil
}

// VerifyKeyCert reads a certificate and checks the signature by root: CodeFormat
// or CodeCertificate. Dates and epochs are for [KeyCert.AcceptableAt].
func VerifyKeyCert(b []byte, root PublicKey) (KeyCert, error) {
	s, k, err := parseKeyCert(b)
	if err != nil {
		return KeyCert{}, err
	}
	return k, k.verify(s, root)
}

func (k KeyCert) verify(s Sign1, root PublicKey) error {
	if !s.verify(root, domainKeyCert) {
		return certificateError("key certificate of %v epoch %d is not signed by root %v", k.Use, k.Epoch, root.RootID())
	}
	if _, err := ParsePublicKey(k.Key[:]); err != nil {
		return certificateError("key certificate of %v epoch %d has no point of P-256", k.Use, k.Epoch)
	}
	return nil
}

func parseKeyCert(b []byte) (s Sign1, k KeyCert, err error) {
	if s, _, err = parseSign1(b, false); err != nil {
		return s, k, err
	}
	if err := unmarshalExact(s.Payload, &k, 1, 2, 3, 4, 5, 6); err != nil {
		return s, k, err
	}
	if _, ok := useNames[k.Use]; !ok {
		return s, k, formatError("key certificate for unknown %v", k.Use)
	}
	return s, k, nil
}

// AcceptableAt checks the dates and epochs by which C and D take a verified
// certificate, PROTOCOL.md §2.2: CodeCertificate if not. stored is the epoch held
// for this use, nil if none. now is Unix seconds.
func (k KeyCert) AcceptableAt(now uint64, stored *uint64) error {
	if k.MinEpoch != nil && *k.MinEpoch > k.Epoch {
		return certificateError("%v epoch %d is below its own minimum %d", k.Use, k.Epoch, *k.MinEpoch)
	}
	if stored != nil && (k.Epoch <= *stored || k.Epoch-*stored > maxEpochStep) {
		return certificateError("%v epoch %d does not follow the stored %d", k.Use, k.Epoch, *stored)
	}
	return k.validAt(now)
}

func (k KeyCert) validAt(now uint64) error {
	if k.begins() > now {
		return certificateError("%v epoch %d is not valid before %d", k.Use, k.Epoch, k.NotBefore)
	}
	if k.NotAfter < now {
		return certificateError("%v epoch %d was valid until %d", k.Use, k.Epoch, k.NotAfter)
	}
	return nil
}

// begins is the first second at which the certificate is taken.
func (k KeyCert) begins() uint64 { return k.NotBefore - min(k.NotBefore, clockSlack) }

// TakesM2At says whether C still takes an M2 under this kem epoch: until 30 days
// after it is over, PROTOCOL.md §2.2.
func (k KeyCert) TakesM2At(now uint64) bool {
	return now <= k.NotAfter || now-k.NotAfter < kemGrace
}

func certificateError(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, CodeCertificate)...)
}
