package protocol

import (
	"encoding/base32"
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
