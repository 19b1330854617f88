// Package password derives the verifier that the appliance stores from a password, and proves
// knowledge of it (PROTOCOL.md §4.1). Guessing needs the phone's secret DS as well, so that neither
// a database nor a recording is enough to try passwords.
package password

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"golang.org/x/text/unicode/norm"

	"countersign/internal/secret"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
)

// SaltSize is the length of a salt, in bytes.
const SaltSize = 16

// Salt is the Argon2id salt, random for each password.
type Salt [SaltSize]byte

// Params are the cost parameters of Argon2id, RFC 9106.
type Params struct {
	MemoryKiB   uint32
	Iterations  uint32
	Parallelism uint8
}

// Default is the clients' choice: 64 MiB, 3 iterations, one lane.
var Default = Params{MemoryKiB: 64 * 1024, Iterations: 3, Parallelism: 1}

// Check returns [protocol.CodeFormat] for parameters below 19 MiB or 2 iterations.
func (p Params) Check() error {
	if p.MemoryKiB < enrol.MinPasswordMemoryKiB || p.Iterations < enrol.MinPasswordIterations || p.Parallelism < 1 {
		return fmt.Errorf("Argon2id with %d KiB, %d iterations, %d lanes is below the minimum: %w",
			p.MemoryKiB, p.Iterations, p.Parallelism, protocol.CodeFormat)
	}
	return nil
}

// Stretched is a of PROTOCOL.md §4.1, 32 secret bytes.
type Stretched [32]byte

// Bound is b, 32 secret bytes. A key store that never exports DS computes it.
type Bound [32]byte

// Verifier is K_pw, 32 secret bytes, the key of proofs.
type Verifier [32]byte

// DeviceSecret is DS, 32 random bytes that never leave the phone.
type DeviceSecret [32]byte

// Format prevents every verb from printing the bytes.
func (Stretched) Format(f fmt.State, _ rune) { secret.Print(f) }

// Format prevents every verb from printing the bytes.
func (Bound) Format(f fmt.State, _ rune) { secret.Print(f) }

// Format prevents every verb from printing the bytes.
func (Verifier) Format(f fmt.State, _ rune) { secret.Print(f) }

// Format prevents every verb from printing the bytes.
func (DeviceSecret) Format(f fmt.State, _ rune) { secret.Print(f) }

// Normalize returns the UTF-8 of the NFKC form, so that different keyboards produce the same bytes.
func Normalize(password string) []byte { return norm.NFKC.Bytes([]byte(password)) }

// Stretch computes a with Argon2id. It takes about 0.1 s and p.MemoryKiB of memory. It returns
// [protocol.CodeFormat] for parameters below the minimum and for passwords that are not UTF-8.
func Stretch(password string, salt Salt, p Params) (Stretched, error) {
	if err := p.Check(); err != nil {
		return Stretched{}, err
	}
	if !utf8.ValidString(password) {
		return Stretched{}, fmt.Errorf("password is not UTF-8: %w", protocol.CodeFormat)
	}
	a := argon2.IDKey(Normalize(password), salt[:], p.Iterations, p.MemoryKiB, p.Parallelism, 32)
	return Stretched(a), nil
}

// Bind computes b with DS in software.
func (ds DeviceSecret) Bind(client protocol.ClientID, a Stretched) Bound {
	return Bound(mac(ds[:], derive.PasswordBindInput(client, a[:])))
}

// Verifier computes K_pw.
func (b Bound) Verifier() Verifier {
	k, err := hkdf.Expand(sha256.New, b[:], derive.PasswordVerifierInfo, len(Verifier{}))
	if err != nil {
		panic(err) // it fails only above 255 hashes
	}
	return Verifier(k)
}

// Proof returns the 16 bytes of P3.3, which prove knowledge of the password for the statement with
// this hash.
func (v Verifier) Proof(statement [32]byte) [message.ProofSize]byte {
	return [message.ProofSize]byte(mac(v[:], derive.PasswordProofInput(statement))[:message.ProofSize])
}

func mac(key, input []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(input)
	return h.Sum(nil)
}
