package pkcs11

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// This file finds the public half of a private key that has none on the token, or several. A tool
// that restores private keys only leaves such a token. The private key is used once, and the
// result verifies with one of the public keys that come into question.

// halves has the public keys that the caller knows, and what private keys have proven.
type halves struct {
	mu     sync.Mutex // guards the fields below
	known  map[hsm.KeyID]publicKey
	proofs map[string]hsm.KeyID // by object; the zero id if it belongs to none of them
}

// Know implements [hsm.Token].
func (t *Token) Know(_ context.Context, publics [][]byte) error {
	fresh := map[hsm.KeyID]publicKey{}
	for _, spki := range publics {
		key, id, err := check.ParsePublic(spki)
		if err != nil {
			return err
		}
		fresh[id] = publicKey{key: key, spki: bytes.Clone(spki), id: id}
	}
	t.halves.mu.Lock()
	defer t.halves.mu.Unlock()
	if t.halves.known == nil {
		t.halves.known = map[hsm.KeyID]publicKey{}
	}
	maps.Copy(t.halves.known, fresh)
	t.halves.proofs = nil
	return nil
}

// proof returns what an object has proven before.
func (h *halves) proof(object string) (id hsm.KeyID, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id, ok = h.proofs[object]
	return id, ok
}

func (h *halves) remember(object string, id hsm.KeyID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proofs == nil {
		h.proofs = map[string]hsm.KeyID{}
	}
	h.proofs[object] = id
}

// with returns the known public keys and those on the token.
func (h *halves) with(publics []publicKey) map[hsm.KeyID]publicKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := maps.Clone(h.known)
	if all == nil {
		all = map[hsm.KeyID]publicKey{}
	}
	for _, p := range publics {
		all[p.id] = p
	}
	return all
}

// proven returns the public half of a private key, of those with its CKA_ID and those that the
// caller knows. It uses the private key once; an object that was used before is not used again,
// unless the module failed at it.
func (t *Token) proven(s *session, o object, facts keyFacts, publics []publicKey) (public publicKey, ok bool, err error) {
	all := t.halves.with(publics)
	name := fmt.Sprintf("%d %x %s", o.handle, o.mark, o.Label)
	if id, done := t.halves.proof(name); done {
		public, ok = all[id]
		return public, ok, nil
	}
	doubtful := false
	for _, usage := range hsm.Usages() {
		among := facts.halvesFor(usage, all)
		if len(among) == 0 {
			continue
		}
		o.Usage = usage
		if public, ok, err = t.prover(s, o, among); err != nil && t.loggedIn() != nil {
			return public, false, err
		}
		if ok {
			break
		}
		doubtful = doubtful || err != nil && !refusesKey(err)
	}
	if ok || !doubtful {
		t.halves.remember(name, public.id)
	}
	return public, ok, nil
}

// refusesKey reports whether an error says that a key is not for a use. Any other may be gone at the next try.
func refusesKey(err error) bool {
	c := classify(err)
	return c == input || c == wrongKey || c == lacking
}

// halvesFor returns the public keys that may belong to a private key of the usage.
func (k keyFacts) halvesFor(usage hsm.Usage, all map[hsm.KeyID]publicKey) (fit []publicKey) {
	for _, p := range all {
		if k.public = p.key; k.mayBe(usage) && p.has(k.part) {
			fit = append(fit, p)
		}
	}
	return fit
}

// has reports whether a public key has the curve or modulus. nil is one that is not known.
func (p publicKey) has(part []byte) bool {
	values, err := p.values()
	return part == nil || err == nil && (bytes.Equal(values[0].Value, part) || bytes.Equal(part, nameEd25519))
}

// prover has a private key prove its usage, and returns the public key with which the proof
// verifies. A token that answers wrong once is asked again.
func (t *Token) prover(s *session, o object, among []publicKey) (public publicKey, ok bool, err error) {
	prove := t.proveSigner
	if o.Usage == hsm.DeriveP256 {
		prove = t.proveDeriver
	}
	for range hsm.Tries {
		is, err := prove(s, o)
		if err != nil {
			return public, false, err
		}
		for _, p := range among {
			if is(p) {
				return p, true, nil
			}
		}
	}
	return public, false, nil
}

// proveSigner signs a random input. The function that it returns reports whether the signature
// verifies with a public key.
func (t *Token) proveSigner(s *session, o object) (is func(publicKey) bool, err error) {
	alg := o.Usage.Proof()
	input := random(max(alg.Hash().Size(), sha256.Size))
	sig, err := t.sign(s, o, alg, input)
	return func(p publicKey) bool { return check.Verify(p.key, alg, input, sig) == nil }, err
}

// proveDeriver agrees with a temporary key. The function that it returns reports whether the
// secret is the one that a public key gives.
func (t *Token) proveDeriver(s *session, o object) (is func(publicKey) bool, err error) {
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, at("C_DeriveKey", err)
	}
	kems := t.KEMs()
	if len(kems) == 0 {
		return nil, at("C_DeriveKey", errLacking)
	}
	enc := peer.PublicKey().Bytes()
	got, err := t.decap(s, kems[0], recipient{o, enc, enc})
	return func(p publicKey) bool {
		public, err := (hsm.Key{Public: p.spki}).ECDH()
		if err != nil {
			return false
		}
		z, err := peer.ECDH(public)
		return err == nil && bytes.Equal(got, kems[0].Secret(z, enc))
	}, err
}

// prove uses a private key once and checks the result with the public half.
func (t *Token) prove(s *session, o object) error {
	prove, function := t.proveSigner, "C_Sign"
	if o.Usage == hsm.DeriveP256 {
		prove, function = t.proveDeriver, "C_DeriveKey"
	}
	public, id, err := check.ParsePublic(o.Public)
	if err != nil {
		return at(function, err)
	}
	is, err := prove(s, o)
	if err != nil {
		return mismatchError(err)
	}
	if !is(publicKey{key: public, spki: o.Public, id: id}) {
		return at(function, errWrapped)
	}
	return nil
}
