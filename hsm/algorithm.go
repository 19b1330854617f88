package hsm

import (
	"crypto"
	_ "crypto/sha256" // the hashes that Hash names
	_ "crypto/sha512"
	"fmt"
	"slices"
)

// Algorithm is a signature algorithm by its name in RFC 7518 §3.1, RFC 8037
// §3.1 and RFC 9053 §2.
type Algorithm uint8

// The algorithms, each with its PKCS#11 mechanism and the keys it is for.
const (
	ES256 Algorithm = iota + 1 // CKM_ECDSA, SignP256
	ES384                      // CKM_ECDSA, SignP384
	EdDSA                      // CKM_EDDSA, SignEd25519 (RFC 8032 §5.1)
	RS256                      // CKM_RSA_PKCS, SignRSA…
	RS384
	RS512
	PS256 // CKM_RSA_PKCS_PSS with a salt as long as the hash, SignRSA…
	PS384
	PS512
)

// algorithm is what is known of one of them.
type algorithm struct {
	name string
	hash crypto.Hash // 0 for none
	keys []Usage
}

var (
	rsaKeys    = []Usage{SignRSA2048, SignRSA3072, SignRSA4096}
	algorithms = [...]algorithm{
		ES256: {"ES256", crypto.SHA256, []Usage{SignP256}},
		ES384: {"ES384", crypto.SHA384, []Usage{SignP384}},
		EdDSA: {"EdDSA", 0, []Usage{SignEd25519}},
		RS256: {"RS256", crypto.SHA256, rsaKeys},
		RS384: {"RS384", crypto.SHA384, rsaKeys},
		RS512: {"RS512", crypto.SHA512, rsaKeys},
		PS256: {"PS256", crypto.SHA256, rsaKeys},
		PS384: {"PS384", crypto.SHA384, rsaKeys},
		PS512: {"PS512", crypto.SHA512, rsaKeys},
	}
)

func (a Algorithm) row() algorithm {
	if int(a) >= len(algorithms) {
		return algorithm{}
	}
	return algorithms[a]
}

// ParseAlgorithm reads the name that [Algorithm.String] writes; any other is
// [ErrInput].
func ParseAlgorithm(s string) (Algorithm, error) {
	for a := ES256; a <= PS512; a++ {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("signature algorithm %q is unknown: %w", s, ErrInput)
}

func (a Algorithm) String() string {
	if name := a.row().name; name != "" {
		return name
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// Hash is the hash whose digest is signed; 0 for [EdDSA], which takes the
// message, and for what is no algorithm.
func (a Algorithm) Hash() crypto.Hash { return a.row().hash }

// For tells whether keys of usage u sign with the algorithm.
func (a Algorithm) For(u Usage) bool { return slices.Contains(a.row().keys, u) }
