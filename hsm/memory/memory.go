// Package memory implements [hsm.Token] with Go cryptography, for unit tests. It stores
// nothing and protects nothing: its keys are in the memory of the process.
package memory

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// Token implements [hsm.Token] over a map. The zero value is not ready; use
// [New]. Safe for concurrent use.
type Token struct {
	mu    sync.RWMutex // guards the next two
	keys  map[hsm.KeyID]entry
	certs []hsm.Certificate

	kems []hsm.KEM
}

// New returns an empty token that can do every KEM.
func New() *Token { return With(hsm.DHKEM, hsm.KEM2) }

// With returns an empty token that can do these KEMs.
func With(kems ...hsm.KEM) *Token { return &Token{keys: map[hsm.KeyID]entry{}, kems: kems} }

// Sign implements [hsm.Token]; its signatures are right by construction.
func (t *Token) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	if err := check.Input(alg, input); err != nil {
		return nil, err
	}
	e, err := t.get(ctx, key)
	if err != nil {
		return nil, err
	}
	if err := check.Usage(e.Usage, alg); err != nil {
		return nil, err
	}
	return e.sign(alg, input)
}

// Decap implements [hsm.Token].
func (t *Token) Decap(ctx context.Context, key hsm.KeyID, kem hsm.KEM, enc *ecdh.PublicKey) ([]byte, error) {
	if err := check.Decap(kem, enc); err != nil {
		return nil, err
	}
	if err := check.Offered(kem, t.kems); err != nil {
		return nil, err
	}
	e, z, err := t.derive(ctx, key, enc)
	if err != nil {
		return nil, err
	}
	return kem.Secret(z, append(enc.Bytes(), e.ecdh.PublicKey().Bytes()...)), nil
}

// KEMs implements [hsm.Token].
func (t *Token) KEMs() []hsm.KEM { return t.kems }

// derive does one ECDH. It returns Z.
func (t *Token) derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) (e entry, z []byte, err error) {
	if e, err = t.find(ctx, key, hsm.DeriveP256); err != nil {
		return e, nil, err
	}
	if z, err = e.ecdh.ECDH(peer); err != nil {
		return e, nil, fmt.Errorf("deriving: %v: %w", err, hsm.ErrInput)
	}
	return e, z, nil
}

// MAC implements [hsm.Token].
func (t *Token) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if err := check.Data(data); err != nil {
		return nil, err
	}
	e, err := t.find(ctx, key, hsm.MACKey)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, e.secret)
	mac.Write(data)
	return mac.Sum(nil), nil
}

// Import implements [hsm.Token].
func (t *Token) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	if err := check.Import(i); err != nil {
		return nil, err
	}
	wrap, err := t.find(ctx, i.Wrap, hsm.WrapKey)
	if err != nil {
		return nil, err
	}
	_, z, err := t.derive(ctx, i.Enrol, i.Ephemeral)
	if err != nil {
		return nil, err
	}
	secret, err := kwp.Open(z, i)
	if err != nil {
		return nil, err
	}
	return kwp.Wrap(wrap.secret, secret)
}

// MACWrapped implements [hsm.Token].
func (t *Token) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	if err := check.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	e, err := t.find(ctx, wrap, hsm.WrapKey)
	if err != nil {
		return nil, err
	}
	secret, err := kwp.Unwrap(e.secret, wrapped)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(data)
	return mac.Sum(nil), nil
}

// Rewrap implements [hsm.Token].
func (t *Token) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	if err := check.Kept(r.Wrapped); err != nil {
		return nil, err
	}
	from, err := t.find(ctx, r.From, hsm.WrapKey)
	if err != nil {
		return nil, err
	}
	to, err := t.find(ctx, r.To, hsm.WrapKey)
	if err != nil {
		return nil, err
	}
	secret, err := kwp.Unwrap(from.secret, r.Wrapped)
	if err != nil {
		return nil, err
	}
	return kwp.Wrap(to.secret, secret)
}

// Keys implements [hsm.Token]; the keys are sorted by label.
func (t *Token) Keys(ctx context.Context) ([]hsm.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	keys := make([]hsm.Key, 0, len(t.keys))
	for _, e := range t.keys {
		keys = append(keys, e.copy())
	}
	slices.SortFunc(keys, func(a, b hsm.Key) int { return cmp.Compare(a.Label, b.Label) })
	return keys, nil
}

// Foreign implements [hsm.Token]: every key here is the appliance's.
func (t *Token) Foreign(ctx context.Context) ([]hsm.Key, error) { return nil, ctx.Err() }

// Know implements [hsm.Token]. Every pair here has its public half.
func (t *Token) Know(ctx context.Context, publics [][]byte) error {
	for _, p := range publics {
		if _, _, err := check.ParsePublic(p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Objects implements [hsm.Token] with what a PKCS#11 token would report; they are sorted
// by label.
func (t *Token) Objects(ctx context.Context) ([]hsm.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing objects: %w", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	objects := make([]hsm.Object, 0, len(t.keys))
	for _, e := range t.keys {
		objects = append(objects, e.object())
	}
	slices.SortFunc(objects, func(a, b hsm.Object) int { return cmp.Compare(a.Label, b.Label) })
	return objects, nil
}

// object returns the key as a PKCS#11 token would describe it.
func (e entry) object() hsm.Object {
	k := e.Usage.Kind()
	return hsm.Object{
		Class: e.Usage.Class(), KeyType: k.KeyType, ID: e.ID[:], Key: e.ID, Label: e.Label, Mechanisms: k.Mechanisms,
		Told: hsm.AttrPrivate | hsm.AttrSensitive | hsm.AttrExtractable | hsm.AttrModifiable | hsm.AttrUsages | hsm.AttrHistory | hsm.AttrRestricted,
		True: hsm.AttrPrivate | hsm.AttrSensitive | hsm.AttrRestricted | k.May | e.history,
	}
}

func (t *Token) find(ctx context.Context, id hsm.KeyID, usage hsm.Usage) (entry, error) {
	e, err := t.get(ctx, id)
	if err == nil && e.Usage != usage {
		err = fmt.Errorf("key %s is for %s, not %s: %w", id, e.Usage, usage, hsm.ErrKey)
	}
	return e, err
}

func (t *Token) get(ctx context.Context, id hsm.KeyID) (entry, error) {
	if err := ctx.Err(); err != nil {
		return entry{}, fmt.Errorf("key %s: %w", id, err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	e, ok := t.keys[id]
	if !ok {
		return entry{}, fmt.Errorf("key %s: %w", id, hsm.ErrKey)
	}
	return e, nil
}

// Clone returns an independent token with the same keys.
func (t *Token) Clone() *Token {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return &Token{keys: maps.Clone(t.keys), certs: slices.Clone(t.certs), kems: t.kems}
}

// entry is one key. Its usage determines which of signer, ecdh and secret is set.
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

// pairEntry returns the entry of a private key.
func pairEntry(spec hsm.KeySpec, key any) (e entry, err error) {
	e.Label, e.Usage = spec.Label, spec.Usage
	if ec, ok := key.(*ecdsa.PrivateKey); ok && spec.Usage == hsm.DeriveP256 {
		if key, err = ec.ECDH(); err != nil { // PKCS #8 has one format for both
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

// export returns the key as in a sealed copy: PKCS #8, or 32 bytes.
func (e entry) export() ([]byte, error) {
	switch {
	case e.secret != nil:
		return e.secret, nil
	case e.ecdh != nil:
		return x509.MarshalPKCS8PrivateKey(e.ecdh)
	}
	return x509.MarshalPKCS8PrivateKey(e.signer)
}

// sign makes a signature in the format of [hsm.Signer].
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
