package pkcs11

import (
	"context"
	"crypto/ecdh"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// Sign implements [hsm.Token] with CKM_ECDSA.
func (t *Token) Sign(ctx context.Context, key hsm.KeyID, digest []byte) (signature []byte, err error) {
	if err := border.Digest(digest); err != nil {
		return nil, err
	}
	err = t.use(ctx, key, hsm.SignP256, func(s *session, o object) (err error) {
		signature, err = t.sign(s, o, pkcs11.CKM_ECDSA, digest)
		return err
	})
	return signature, err
}

// MAC implements [hsm.Token] with CKM_SHA256_HMAC.
func (t *Token) MAC(ctx context.Context, key hsm.KeyID, data []byte) (mac []byte, err error) {
	if err := border.Data(data); err != nil {
		return nil, err
	}
	err = t.use(ctx, key, hsm.MACKey, func(s *session, o object) (err error) {
		mac, err = t.sign(s, o, pkcs11.CKM_SHA256_HMAC, data)
		return err
	})
	return mac, err
}

func (t *Token) sign(s *session, o object, mech uint, in []byte) ([]byte, error) {
	if err := t.ctx.SignInit(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)}, o.handle); err != nil {
		return nil, at("C_SignInit", err)
	}
	size := border.SecretLen
	if mech == pkcs11.CKM_ECDSA {
		size = 2 * border.SecretLen
	}
	out, err := t.native.sign(s.handle, in, size)
	return out, at("C_Sign", err)
}

// Derive implements [hsm.Token] with CKM_ECDH1_DERIVE and no KDF.
func (t *Token) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) (z []byte, err error) {
	if err := border.Peer(peer); err != nil {
		return nil, err
	}
	err = t.use(ctx, key, hsm.DeriveP256, func(s *session, o object) (err error) {
		z, err = t.derive(s, o, peer.Bytes())
		return err
	})
	return z, err
}

// derive reads the secret once from a session object, which is destroyed
// whatever happens: what cannot be destroyed closes its session, and the
// object goes with that.
func (t *Token) derive(s *session, o object, peer []byte) (z []byte, err error) {
	params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer)
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, params)}
	secret, err := t.ctx.DeriveKey(s.handle, mech, o.handle, derived())
	if err != nil {
		return nil, at("C_DeriveKey", err)
	}
	z, err = t.native.value(s.handle, secret, border.SecretLen)
	gone := t.ctx.DestroyObject(s.handle, secret)
	if err != nil {
		return nil, at("C_GetAttributeValue", err)
	}
	if gone != nil {
		clear(z)
		return nil, at("C_DestroyObject", gone)
	}
	return z, nil
}

func derived() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, border.SecretLen),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	}
}
