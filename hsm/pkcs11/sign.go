package pkcs11

import (
	"context"
	"crypto"
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// signing are the mechanisms of the algorithms.
var signing = map[hsm.Algorithm]capability{
	hsm.ES256: {"signing with ES256", []mechanism{ecdsa}},
	hsm.ES384: {"signing with ES384", []mechanism{ecdsa}},
	hsm.EdDSA: {"signing with EdDSA", []mechanism{eddsa}},
	hsm.RS256: {"signing with RS256", []mechanism{rsaPKCS}},
	hsm.RS384: {"signing with RS384", []mechanism{rsaPKCS}},
	hsm.RS512: {"signing with RS512", []mechanism{rsaPKCS}},
	hsm.PS256: {"signing with PS256", []mechanism{rsaPSS}},
	hsm.PS384: {"signing with PS384", []mechanism{rsaPSS}},
	hsm.PS512: {"signing with PS512", []mechanism{rsaPSS}},
}

// Sign implements [hsm.Token] with CKM_ECDSA, CKM_EDDSA, CKM_RSA_PKCS and
// CKM_RSA_PKCS_PSS. It leaves the verifying to package worker, outside of the
// process that the module shares.
func (t *Token) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) (signature []byte, err error) {
	if err := border.Input(alg, input); err != nil {
		return nil, err
	}
	if err := t.have.check(signing[alg]); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, alg: alg}, func(s *session, o object) (err error) {
		signature, err = t.sign(s, o, alg, input)
		return err
	})
	return signature, err
}

func (t *Token) sign(s *session, o object, alg hsm.Algorithm, input []byte) ([]byte, error) {
	m := making{mechanism: signing[alg].mechanisms[0].code, size: border.SignatureLen(alg)}
	switch m.mechanism {
	case pkcs11.CKM_RSA_PKCS:
		m.size, input = profiles[o.Usage].bits/8, border.DigestInfo(alg.Hash(), input)
	case pkcs11.CKM_RSA_PKCS_PSS:
		m.size, m.parameter = profiles[o.Usage].bits/8, pssParams(alg.Hash())
	}
	return t.native.sign(s, o.handle, m, input)
}

// pssParams is CK_RSA_PKCS_PSS_PARAMS: hash, mask generation function and length
// of the salt.
func pssParams(hash crypto.Hash) []byte {
	ids := map[crypto.Hash][2]uint64{
		crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
		crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
		crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
	}[hash]
	var b []byte
	for _, word := range []uint64{ids[0], ids[1], uint64(hash.Size())} {
		b = binary.NativeEndian.AppendUint64(b, word)
	}
	return b
}

// MAC implements [hsm.Token] with CKM_SHA256_HMAC.
func (t *Token) MAC(ctx context.Context, key hsm.KeyID, data []byte) (mac []byte, err error) {
	if err := border.Data(data); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, usage: hsm.MACKey}, func(s *session, o object) (err error) {
		mac, err = t.native.sign(s, o.handle, hmacSHA256, data)
		return err
	})
	return mac, err
}

var hmacSHA256 = making{mechanism: pkcs11.CKM_SHA256_HMAC, size: border.SecretLen}

// Encrypt implements [hsm.Token] with CKM_AES_GCM.
func (t *Token) Encrypt(ctx context.Context, key hsm.KeyID, plain, aad []byte) (box []byte, err error) {
	if err := border.Plain(plain, aad); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, usage: hsm.SealAES}, func(s *session, o object) (err error) {
		box, err = t.encrypt(s, o, plain, aad)
		return err
	})
	return box, err
}

func (t *Token) encrypt(s *session, o object, plain, aad []byte) ([]byte, error) {
	nonce := random(border.NonceLen)
	sealed, err := t.native.encrypt(s, o.handle, nonce, plain, aad)
	if err != nil {
		return nil, err
	}
	return append(nonce, sealed...), nil
}

// Decrypt implements [hsm.Token] with CKM_AES_GCM.
func (t *Token) Decrypt(ctx context.Context, key hsm.KeyID, box, aad []byte) (plain []byte, err error) {
	if err := border.Box(box, aad); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, usage: hsm.SealAES}, func(s *session, o object) (err error) {
		plain, err = t.decrypt(s, o, box, aad)
		if blames(err) && t.opens(s, o) == nil {
			err = at("C_Decrypt", errWrapped)
		}
		return err
	})
	return plain, err
}

func (t *Token) decrypt(s *session, o object, box, aad []byte) ([]byte, error) {
	nonce := append([]byte(nil), box[:border.NonceLen]...) // it may be written to
	return t.native.decrypt(s, o.handle, nonce, box[border.NonceLen:], aad)
}

// opens tells whether a key opens what it sealed.
func (t *Token) opens(s *session, o object) error {
	box, err := t.encrypt(s, o, nil, nil)
	if err != nil {
		return err
	}
	_, err = t.decrypt(s, o, box, nil)
	return err
}
