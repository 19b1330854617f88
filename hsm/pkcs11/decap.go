package pkcs11

import (
	"context"
	"crypto/ecdh"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/internal/kem"
)

// This file decapsulates: from an ECDH of the token to the shared secret of a KEM.

// KEMs implements [hsm.Token].
func (t *Token) KEMs() []hsm.KEM { return t.ways.agreement.kems() }

// Decap implements [hsm.Token] with CKM_ECDH1_DERIVE.
func (t *Token) Decap(ctx context.Context, key hsm.KeyID, kem hsm.KEM, enc *ecdh.PublicKey) (shared []byte, err error) {
	if err := check.Decap(kem, enc); err != nil {
		return nil, err
	}
	if err := check.Offered(kem, t.KEMs()); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, usage: hsm.DeriveP256}, func(s *session, o object) (err error) {
		i := len(o.Public) - check.PointLen // a SubjectPublicKeyInfo ends in the point, RFC 5480 §2
		if i < 0 {
			return fmt.Errorf("the public half of key %s is not known: %w", o.ID, hsm.ErrKey)
		}
		shared, err = t.decap(s, kem, recipient{o, enc.Bytes(), slices.Concat(enc.Bytes(), o.Public[i:])})
		return blamesInput(err) // enc is a point on the curve
	})
	return shared, err
}

// recipient is a key pair with what a sender sent for it.
type recipient struct {
	object
	enc     []byte // an uncompressed point
	context []byte // enc || pkR, or other bytes in a test of the key
}

// decap does one key agreement in the way that was chosen.
func (t *Token) decap(s *session, kem hsm.KEM, to recipient) ([]byte, error) {
	switch t.ways.agreement {
	case agreeDigest:
		return t.decapByDigest(s, kem, to)
	case agreeKDF:
		return t.decapByKDF(s, to)
	}
	z, err := t.derive(s, to.object, to.enc)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	return kem.Secret(z, to.context), nil
}

// decapByDigest hashes Z inside the token, where it is sensitive and not extractable. What leaves the
// token is the hash that the KEM makes of Z.
func (t *Token) decapByDigest(s *session, kem hsm.KEM, to recipient) (shared []byte, err error) {
	z, err := t.ctx.DeriveKey(s.handle, ecdhMechanism(to.enc), to.handle, withLength(t.sessionSecret(pkcs11.CKK_GENERIC_SECRET, false)))
	if err != nil {
		return nil, at("C_DeriveKey", err)
	}
	defer t.destroy(s, z, &err)
	before, after, finish := kem.Hashed()
	hash, err := t.digestKey(s, before, z, after)
	if err != nil {
		return nil, err
	}
	defer clear(hash)
	return finish(hash, to.context), nil
}

// digestKey returns SHA-256(before || key || after).
func (t *Token) digestKey(s *session, before []byte, key pkcs11.ObjectHandle, after []byte) (hash []byte, err error) {
	if err := t.ctx.DigestInit(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_SHA256, nil)}); err != nil {
		return nil, at("C_DigestInit", err)
	}
	for _, step := range []struct {
		function string
		do       func() error
	}{
		{"C_DigestUpdate", func() error { return t.digestUpdate(s, before) }},
		{"C_DigestKey", func() error { return t.ctx.DigestKey(s.handle, key) }},
		{"C_DigestUpdate", func() error { return t.digestUpdate(s, after) }},
	} {
		if err := step.do(); err != nil {
			_, _ = t.ctx.DigestFinal(s.handle) // some modules leave a digest that failed open
			return nil, at(step.function, err)
		}
	}
	hash, err = t.ctx.DigestFinal(s.handle)
	if err == nil && len(hash) != check.SecretLen {
		err = errShort
	}
	return hash, at("C_DigestFinal", err)
}

func (t *Token) digestUpdate(s *session, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	return t.ctx.DigestUpdate(s.handle, data)
}

// decapByKDF is KEM2: an HMAC key that the token derives with a KDF, and its MAC (PROTOCOL.md §2.3).
func (t *Token) decapByKDF(s *session, to recipient) (shared []byte, err error) {
	template := t.sessionSecret(t.ways.mac.keyType, false, pkcs11.CKA_SIGN)
	if !t.ways.mac.unsized {
		template = withLength(template)
	}
	params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_SHA256_KDF, nil, to.enc)
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, params)}
	key, err := t.ctx.DeriveKey(s.handle, mechanism, to.handle, template)
	if err != nil {
		return nil, at("C_DeriveKey", err)
	}
	defer t.destroy(s, key, &err)
	return t.native.sign(s, key, hmacSHA256, kem.Input(to.context))
}

// derive reads the secret once from a session object, which it always destroys. If that
// fails, the session is closed, and the object with it.
func (t *Token) derive(s *session, o object, peer []byte) (z []byte, err error) {
	secret, err := t.ctx.DeriveKey(s.handle, ecdhMechanism(peer), o.handle, derived(t.ways.openZ))
	if err != nil {
		return nil, at("C_DeriveKey", err)
	}
	z, err = t.native.value(s.handle, secret, check.SecretLen)
	err = at("C_GetAttributeValue", err)
	if t.destroy(s, secret, &err); err != nil {
		clear(z)
		return nil, err
	}
	return z, nil
}

func ecdhMechanism(peer []byte) []*pkcs11.Mechanism {
	params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer)
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, params)}
}

// derived returns the template of a secret that is read. It is private, except on a module that
// refuses that.
func derived(open bool) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, check.SecretLen),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, !open),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	}
}
