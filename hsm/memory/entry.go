package memory

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// entry is one key; which of the three is set follows from its usage.
type entry struct {
	hsm.Key
	signer  crypto.Signer
	ecdh    *ecdh.PrivateKey
	secret  []byte
	history hsm.Attributes // of [hsm.AttrHistory]
}

func (e entry) copy() hsm.Key {
	k := e.Key
	k.Public = slices.Clone(k.Public)
	return k
}

// newEntry makes a key.
func newEntry(spec hsm.KeySpec) (entry, error) {
	var key any
	var err error
	switch k := spec.Usage.Kind(); {
	case k.Curve == "P-256": // pairEntry makes it one for ECDH where that is its usage
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case k.Curve == "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case k.Curve == "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case k.KeyType == "CKK_RSA":
		key, err = rsa.GenerateKey(rand.Reader, k.Bits)
	default:
		secret := make([]byte, check.SecretLen)
		_, _ = rand.Read(secret) // never fails, see crypto/rand.Read
		e := entry{Key: hsm.Key{Label: spec.Label, Usage: spec.Usage}, secret: secret}
		_, _ = rand.Read(e.ID[:])
		return e, nil
	}
	if err != nil {
		return entry{}, err
	}
	return pairEntry(spec, key)
}

// pairEntry is the entry of a private key.
func pairEntry(spec hsm.KeySpec, key any) (e entry, err error) {
	e.Label, e.Usage = spec.Label, spec.Usage
	if ec, ok := key.(*ecdsa.PrivateKey); ok && spec.Usage == hsm.DeriveP256 {
		if key, err = ec.ECDH(); err != nil { // PKCS #8 does not tell the two apart
			return e, err
		}
	}
	switch k := key.(type) {
	case *ecdh.PrivateKey:
		e.ecdh = k
		e.Public, e.ID, err = check.Encode(k.PublicKey())
	case crypto.Signer:
		e.signer = k
		e.Public, e.ID, err = check.Encode(k.Public())
	default:
		err = fmt.Errorf("%T is no private key", key)
	}
	return e, err
}

// export is the key as a sealed copy has it: PKCS #8, or 32 bytes.
func (e entry) export() ([]byte, error) {
	switch {
	case e.secret != nil:
		return e.secret, nil
	case e.ecdh != nil:
		return x509.MarshalPKCS8PrivateKey(e.ecdh)
	}
	return x509.MarshalPKCS8PrivateKey(e.signer)
}

// sign makes a signature of the form that [hsm.Signer] names.
func (e entry) sign(alg hsm.Algorithm, input []byte) (sig []byte, err error) {
	switch k := e.signer.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, input)
		if err != nil {
			return nil, fmt.Errorf("signing: %v: %w", err, hsm.ErrUnavailable)
		}
		sig = make([]byte, alg.Size(e.Usage))
		r.FillBytes(sig[:len(sig)/2])
		s.FillBytes(sig[len(sig)/2:])
		return sig, nil
	case *rsa.PrivateKey:
		var opts crypto.SignerOpts = alg.Hash()
		if alg.PSS() {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: alg.Hash()}
		}
		sig, err = k.Sign(rand.Reader, input, opts)
	default:
		sig, err = k.Sign(rand.Reader, input, crypto.Hash(0))
	}
	if err != nil {
		return nil, fmt.Errorf("signing: %v: %w", err, hsm.ErrUnavailable)
	}
	return sig, nil
}
