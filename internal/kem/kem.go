// Package kem has the two KEMs of OA1's HPKE (PROTOCOL.md §2 and §2.3) for the phone and for the HSM
// layer, whole and in the parts that a token computes.
package kem

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// ID is a KEM by the number of its suite.
type ID uint8

// The KEMs. They differ in how the shared secret comes from Z, the x coordinate of an ECDH on P-256.
const (
	DHKEM ID = 1 // DHKEM(P-256, HKDF-SHA256), RFC 9180 §4.1
	KEM2  ID = 2 // for tokens that do not let Z out, PROTOCOL.md §2.3
)

// Domain begins the input of the MAC of KEM2.
const Domain = "OA1 kem v2"

// Size is the length of a shared secret in bytes.
const Size = sha256.Size

// hpkeIDs are the KEM identifiers in HPKE's suite_id. IANA has not assigned the one of KEM2.
var hpkeIDs = map[ID]uint16{DHKEM: 0x0010, KEM2: 0xFF02}

// Known reports whether there is a KEM of this number.
func (id ID) Known() bool { return hpkeIDs[id] != 0 }

func (id ID) String() string { return fmt.Sprintf("suite %d", uint8(id)) }

// HPKE returns the kem_id of RFC 9180 §7.1.
func (id ID) HPKE() uint16 { return hpkeIDs[id] }

// Secret returns the shared secret of Z, 32 bytes. context is enc || pkR, two uncompressed points.
func (id ID) Secret(z, context []byte) []byte {
	if id == KEM2 {
		key := sha256.Sum256(append(z[:len(z):len(z)], counter...))
		return secretOfKey(key[:], context)
	}
	return expand(dhkem.Extract(nil, extracted, z), context)
}

// Input returns what KEM2 computes its MAC of. context is that of [ID.Secret].
func Input(context []byte) []byte { return slices.Concat([]byte(Domain), context) }

const extracted = "eae_prk"

var dhkem = Labels(binary.BigEndian.AppendUint16([]byte("KEM"), hpkeIDs[DHKEM]))

func expand(prk, context []byte) []byte { return dhkem.Expand(prk, "shared_secret", context, Size) }

// Hashed divides [ID.Secret] for a token that hashes Z and does not let it out. The token computes
// SHA-256(before || Z || after), and finish returns the shared secret of that hash. For DHKEM it is the
// inner hash of the HMAC (RFC 2104 §2) in HKDF-Extract, whose key is the empty salt.
func (id ID) Hashed() (before, after []byte, finish func(hash, context []byte) []byte) {
	if id == KEM2 {
		return nil, counter, secretOfKey
	}
	return dhkem.labeled(padded(0x36), extracted, nil), nil, func(inner, context []byte) []byte {
		outer := sha256.Sum256(append(padded(0x5c), inner...))
		return expand(outer[:], context)
	}
}

// counter follows Z in ANSI X9.63 with SHA-256 and no SharedInfo, which PKCS#11 calls CKD_SHA256_KDF.
var counter = []byte{0, 0, 0, 1}

// secretOfKey returns the shared secret of KEM2 from the key of its MAC.
func secretOfKey(key, context []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(Input(context))
	return mac.Sum(nil)
}

// padded returns the HMAC key of no bytes for one of the hashes.
func padded(pad byte) []byte { return slices.Repeat([]byte{pad}, sha256.BlockSize) }

// Labels is a suite_id with LabeledExtract and LabeledExpand of RFC 9180 §4.
type Labels []byte

// Extract returns LabeledExtract(salt, label, ikm), 32 bytes.
func (l Labels) Extract(salt []byte, label string, ikm []byte) []byte {
	return must(hkdf.Extract(sha256.New, l.labeled(nil, label, ikm), salt))
}

// Expand returns LabeledExpand(prk, label, info, size).
func (l Labels) Expand(prk []byte, label string, info []byte, size int) []byte {
	length := binary.BigEndian.AppendUint16(nil, uint16(size))
	return must(hkdf.Expand(sha256.New, prk, string(l.labeled(length, label, info)), size))
}

func (l Labels) labeled(prefix []byte, label string, rest []byte) []byte {
	return slices.Concat(prefix, []byte("HPKE-v1"), l, []byte(label), rest)
}

// must is for calls that fail only for lengths that do not occur here.
func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
