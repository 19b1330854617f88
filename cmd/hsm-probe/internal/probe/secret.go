package probe

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"

	"github.com/miekg/pkcs11"
)

func (p *prober) makeSecret() (err error) {
	p.secret, err = p.generate(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, readable(pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN)...)
	return err
}

// readable returns the template of a secret key that can be read, for checking results in
// software. The appliance's cannot.
func readable(keyType uint, usages ...uint) []*pkcs11.Attribute {
	list := []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, true),
	}
	for _, u := range usages {
		list = append(list, attr(u, true))
	}
	return list
}

func (p *prober) hmac() error {
	data := []byte("probe")
	got, err := p.sign(mech(pkcs11.CKM_SHA256_HMAC, nil), p.secret, data)
	if err != nil {
		return err
	}
	key, err := p.value(p.secret, pkcs11.CKA_VALUE)
	if err != nil { // no secret leaves this module: compare two MACs
		again, err := p.sign(mech(pkcs11.CKM_SHA256_HMAC, nil), p.secret, data)
		return p.same(got, again, err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(data)
	return p.same(got, mac.Sum(nil), nil)
}

func (p *prober) same(got, want []byte, err error) error {
	if err == nil && !bytes.Equal(got, want) {
		return errWrong
	}
	return err
}

func (p *prober) makeAES() (err error) {
	p.aes, err = p.generate(pkcs11.CKM_AES_KEY_GEN, readable(pkcs11.CKK_AES,
		pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE)...)
	return err
}

// wrapSecret wraps a secret of 32 bytes, unwraps it to a key for MACs, and compares the
// MACs of both.
func (p *prober) wrapSecret(mechanism uint) error {
	if p.aes == 0 || p.secret == 0 {
		return errNoKey
	}
	wrapped, err := p.WrapKey(p.main, mech(mechanism, nil), p.aes, p.secret)
	if err != nil {
		return at("C_WrapKey", err)
	}
	h, err := p.unwrap(mechanism, wrapped, append(p.draft(false),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false)))
	if err != nil {
		return err
	}
	want, err := p.sign(mech(pkcs11.CKM_SHA256_HMAC, nil), p.secret, nil)
	if err != nil {
		return err
	}
	got, err := p.sign(mech(pkcs11.CKM_SHA256_HMAC, nil), h, nil)
	return p.same(got, want, err)
}

// unwrap is C_UnwrapKey. It also checks that the module refuses an altered key.
func (p *prober) unwrap(mechanism uint, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	h, err := p.UnwrapKey(p.main, mech(mechanism, nil), p.aes, wrapped, template)
	if err != nil {
		return 0, at("C_UnwrapKey", err)
	}
	p.keep(h)
	altered := bytes.Clone(wrapped)
	altered[len(altered)-1] ^= 1
	if bad, err := p.UnwrapKey(p.main, mech(mechanism, nil), p.aes, altered, template); err == nil {
		p.keep(bad)
		return 0, errOpen
	}
	return h, nil
}

// wrapPair wraps a private key on P-256, unwraps it and has the copy sign.
func (p *prober) wrapPair(mechanism uint) error {
	if p.aes == 0 {
		return errNoKey
	}
	k, err := p.generatePair(pkcs11.CKM_EC_KEY_PAIR_GEN,
		[]*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, curveP256.params)},
		[]*pkcs11.Attribute{attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_SIGN, true)})
	if err != nil {
		return err
	}
	if k.point, err = p.value(k.public, pkcs11.CKA_EC_POINT); err != nil {
		return err
	}
	wrapped, err := p.WrapKey(p.main, mech(mechanism, nil), p.aes, k.private)
	if err != nil {
		return at("C_WrapKey", err)
	}
	k.private, err = p.unwrap(mechanism, wrapped, append(p.draft(false),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false)))
	if err != nil {
		return err
	}
	return p.ecdsa(k, curveP256)
}

// encryptData derives a key by AES-ECB and compares it with what software makes.
func (p *prober) encryptData() error {
	if p.aes == 0 {
		return errNoKey
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 2)
	template := append(p.draft(false), readable(pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN)...)
	h, err := p.encryptKey(p.aes, data, append(template, attr(pkcs11.CKA_VALUE_LEN, 32)))
	if err != nil {
		return at("C_DeriveKey", err)
	}
	p.keep(h)
	key, err := p.value(p.aes, pkcs11.CKA_VALUE)
	if err != nil {
		return nil //nolint:nilerr // no secret leaves this module: it derived, and nobody can tell what
	}
	got, err := p.value(h, pkcs11.CKA_VALUE)
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	want := make([]byte, len(data))
	block.Encrypt(want, data)
	block.Encrypt(want[16:], data[16:])
	return p.same(got, want, nil)
}
