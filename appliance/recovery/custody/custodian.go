package custody

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"filippo.io/age"
)

// Custodian is a person who gets one share, sealed to a key or under a passphrase.
type Custodian struct {
	age.Recipient
	mark [32]byte // equal for the same key or the same passphrase
}

// errSame means that two custodians have one key or one passphrase: one person would hold two shares.
var errSame = errors.New("the same custodian twice")

// Distinct returns an error if two custodians have the same key or passphrase. It names their positions, from 1.
func Distinct(all []Custodian) error {
	for i, one := range all {
		for j, other := range all[:i] {
			if one.mark == other.mark {
				return fmt.Errorf("custodians %d and %d have the same key or passphrase: %w", j+1, i+1, errSame)
			}
		}
	}
	return nil
}

// Recipient parses an age recipient, "age1…".
func Recipient(s string) (c Custodian, err error) {
	all, err := age.ParseRecipients(strings.NewReader(s))
	if err != nil {
		return c, fmt.Errorf("age recipient: %w", err)
	}
	if len(all) != 1 {
		return c, fmt.Errorf("age recipient: got %d, want one custodian for one share", len(all))
	}
	c.Recipient = all[0]
	if named, ok := all[0].(fmt.Stringer); ok {
		s = named.String()
	}
	if _, ok := all[0].(*age.X25519Recipient); ok {
		c.mark = mark("X25519", curvePoint(s))
	} else {
		c.mark = mark("recipient", []byte(s))
	}
	return c, nil
}

// minPassphrase is the least length of a passphrase, in bytes.
const minPassphrase = 16

// Passphrase returns the custodian with a passphrase instead of a key (age's scrypt recipient, N = 2¹⁸). It has at
// least 16 bytes, 6 of them different.
func Passphrase(secret []byte) (c Custodian, err error) {
	if len(secret) < minPassphrase {
		return c, fmt.Errorf("passphrase of %d bytes, want at least %d", len(secret), minPassphrase)
	}
	if n := different(secret); n < minDifferent {
		return c, fmt.Errorf("passphrase of %d different bytes, want at least %d", n, minDifferent)
	}
	c.mark = mark("passphrase", secret)
	c.Recipient, err = age.NewScryptRecipient(string(secret))
	return c, err
}

// minDifferent is how many different bytes a passphrase has at least.
const minDifferent = 6

func different(secret []byte) (n int) {
	var seen [256]bool
	for _, b := range secret {
		if !seen[b] {
			seen[b] = true
			n++
		}
	}
	return n
}

func mark(kind string, value []byte) [32]byte {
	return sha256.Sum256(append([]byte(kind+"\x00"), value...))
}

// bech32Digits are the 32 digits of Bech32 (BIP 173).
const bech32Digits = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

// bech32Checksum is the length of the checksum at the end, in digits.
const bech32Checksum = 6

// prime is 2²⁵⁵ − 19.
var prime = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))

// curvePoint returns the u-coordinate of an X25519 recipient, reduced modulo 2²⁵⁵ − 19, in its one encoding: X25519
// ignores the highest bit and takes numbers above the prime (RFC 7748 §5). age has checked the text.
func curvePoint(recipient string) []byte {
	digits := strings.TrimPrefix(recipient, "age1")
	digits = digits[:len(digits)-bech32Checksum]
	var u []byte
	bits, held := uint(0), uint(0)
	for _, d := range digits {
		bits, held = bits<<5|uint(strings.IndexRune(bech32Digits, d)), held+5
		if held >= 8 {
			held -= 8
			u = append(u, byte(bits>>held))
			bits &= 1<<held - 1
		}
	}
	slices.Reverse(u) // from little to big-endian
	u[0] &= 0x7F
	n := new(big.Int).SetBytes(u)
	return n.Mod(n, prime).Bytes()
}
