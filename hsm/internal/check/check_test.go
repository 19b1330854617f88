package check_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

func newECDSA(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newRSA(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spki(t *testing.T, public crypto.PublicKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParsePublic(t *testing.T) {
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := spki(t, newECDSA(t, elliptic.P256()).Public())
	for name, b := range map[string][]byte{
		"P-256": good, "P-384": spki(t, newECDSA(t, elliptic.P384()).Public()),
		"Ed25519": spki(t, edwards), "RSA": spki(t, newRSA(t, 2048).Public()),
	} {
		public, id, err := check.ParsePublic(b)
		if sum := sha256.Sum256(b); err != nil || !bytes.Equal(id[:], sum[:20]) {
			t.Errorf("%s: %T, %s, %v", name, public, id, err)
		}
	}
	small := newRSA(t, 2048).PublicKey
	small.E = 3
	for name, b := range map[string][]byte{
		"nothing": nil, "cut": good[:len(good)-1], "trailing": append(bytes.Clone(good), 0),
		"P-521": spki(t, newECDSA(t, elliptic.P521()).Public()), "exponent 3": spki(t, &small),
	} {
		if public, _, err := check.ParsePublic(b); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %T, %v, want ErrInput", name, public, err)
		}
	}
}

// signature is what a token would return.
func signature(t *testing.T, k *ecdsa.PrivateKey, digest []byte) []byte {
	t.Helper()
	r, s, err := ecdsa.Sign(rand.Reader, k, digest)
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

func TestVerifyECDSA(t *testing.T) {
	k, digest := newECDSA(t, elliptic.P256()), make([]byte, 32)
	sig := signature(t, k, digest)
	if err := check.Verify(k.Public(), hsm.ES256, digest, sig); err != nil {
		t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	der, err := k.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	half := func(v *big.Int) []byte { return v.FillBytes(make([]byte, 32)) }
	for name, bad := range map[string][]byte{
		"nothing": nil, "DER": der, "short": sig[:63], "long": append(bytes.Clone(sig), 0), "P-384's length": make([]byte, 96),
		"r = 0": slices.Concat(make([]byte, 32), sig[32:]), "s = 0": slices.Concat(sig[:32], make([]byte, 32)),
		"r = n": slices.Concat(half(n), sig[32:]), "s = n": slices.Concat(sig[:32], half(n)), "zeros": make([]byte, 64),
		"swapped": slices.Concat(sig[32:], sig[:32]), "another's": signature(t, newECDSA(t, elliptic.P256()), digest),
	} {
		if err := check.Verify(k.Public(), hsm.ES256, digest, bad); !errors.Is(err, check.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
}

func TestVerifyRSA(t *testing.T) {
	k, digest := newRSA(t, 2048), make([]byte, 32)
	v15, err := k.Sign(nil, digest, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	pss, err := k.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	unsalted, err := k.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		alg  hsm.Algorithm
		sig  []byte
		want error
	}{
		{"PKCS #1", hsm.RS256, v15, nil},
		{"PSS", hsm.PS256, pss, nil},
		{"PSS as PKCS #1", hsm.RS256, pss, check.ErrSignature},
		{"PKCS #1 as PSS", hsm.PS256, v15, check.ErrSignature},
		{"a short salt", hsm.PS256, unsalted, check.ErrSignature},
		{"short", hsm.RS256, v15[1:], check.ErrSignature},
		{"long", hsm.RS256, append([]byte{0}, v15...), check.ErrSignature},
		{"another hash", hsm.RS384, v15, hsm.ErrInput},
		{"another kind of key", hsm.ES256, v15, hsm.ErrKey},
		{"no algorithm", 0, v15, hsm.ErrInput},
	} {
		if err := check.Verify(k.Public(), c.alg, digest, c.sig); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// DigestInfo is what crypto/rsa pads: what Go signs as a hash is what it signs
// when it is given the whole.
func TestDigestInfo(t *testing.T) {
	k := newRSA(t, 2048)
	for alg := hsm.RS256; alg <= hsm.RS512; alg++ {
		digest := make([]byte, alg.Hash().Size())
		whole, err := rsa.SignPKCS1v15(nil, k, 0, check.DigestInfo(alg.Hash(), digest))
		if err != nil {
			t.Fatal(err)
		}
		if err := check.Verify(k.Public(), alg, digest, whole); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestRestore(t *testing.T) {
	point := func() []byte {
		k, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.PublicKey().Bytes()
	}()
	good := hsm.Restore{
		Spec: hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey}, ID: hsm.KeyID{1}, Sealed: append(point, make([]byte, 40)...),
	}
	if k, err := check.Restore(good); err != nil || k.ID != good.ID || k.Label != "mac@1" {
		t.Errorf("%v, %v", k, err)
	}
	for name, change := range map[string]func(*hsm.Restore){
		"short":         func(r *hsm.Restore) { r.Sealed = r.Sealed[:97] },
		"half a block":  func(r *hsm.Restore) { r.Sealed = r.Sealed[:101] },
		"a pair's size": func(r *hsm.Restore) { r.Sealed = append(r.Sealed, make([]byte, 8)...) },
		"no point":      func(r *hsm.Restore) { r.Sealed = make([]byte, 105) },
		"5 KiB":         func(r *hsm.Restore) { r.Sealed = append(r.Sealed, make([]byte, 5<<10)...) },
		"public":        func(r *hsm.Restore) { r.Public = []byte{} },
	} {
		r := good
		change(&r)
		if _, err := check.Restore(r); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", name, err)
		}
	}
}

// TestSpec: what Spec accepts at its bounds, and what it refuses beyond them.
func TestSpec(t *testing.T) {
	public := func(curve ecdh.Curve) *ecdh.PublicKey {
		key, err := curve.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.PublicKey()
	}
	p256, other := public(ecdh.P256()), public(ecdh.X25519())
	spec := func(label string, usage hsm.Usage, recipients ...*ecdh.PublicKey) hsm.KeySpec {
		return hsm.KeySpec{Label: label, Usage: usage, Recipients: recipients}
	}
	for name, c := range map[string]struct {
		spec hsm.KeySpec
		good bool
	}{
		"plain":              {spec("kem@1", hsm.DeriveP256, p256), true},
		"most recipients":    {spec("kem@1", hsm.DeriveP256, slices.Repeat([]*ecdh.PublicKey{p256}, 16)...), true},
		"one more":           {spec("kem@1", hsm.DeriveP256, slices.Repeat([]*ecdh.PublicKey{p256}, 17)...), false},
		"another curve":      {spec("kem@1", hsm.DeriveP256, p256, other), false},
		"no recipient's":     {spec("kem@1", hsm.DeriveP256, nil), false},
		"longest label":      {spec(strings.Repeat("x", 64), hsm.DeriveP256), true},
		"longer label":       {spec(strings.Repeat("x", 65), hsm.DeriveP256), false},
		"no label":           {spec("", hsm.DeriveP256), false},
		"label not in UTF-8": {spec("\xff", hsm.DeriveP256), false},
		"no usage":           {spec("kem@1", 0), false},
	} {
		if err := check.Spec(c.spec); (err == nil) != c.good || err != nil && !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
