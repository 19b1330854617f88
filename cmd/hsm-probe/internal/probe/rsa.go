package probe

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"math/big"

	"github.com/miekg/pkcs11"
)

// sha256Info is what PKCS#1 v1.5 puts before a SHA-256 digest (RFC 8017 §9.2).
var sha256Info = []byte{0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20}

func (p *prober) makeRSA() (err error) {
	p.rsa, err = p.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		[]*pkcs11.Attribute{
			attr(pkcs11.CKA_MODULUS_BITS, 2048), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), attr(pkcs11.CKA_VERIFY, true),
		},
		[]*pkcs11.Attribute{attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_SIGN, true)})
	return err
}

func (p *prober) pkcs1() error {
	digest := sha256.Sum256([]byte("probe"))
	return p.checkPKCS1(pkcs11.CKM_RSA_PKCS, append(append([]byte{}, sha256Info...), digest[:]...))
}

func (p *prober) rsaSHA256() error { return p.checkPKCS1(pkcs11.CKM_SHA256_RSA_PKCS, []byte("probe")) }

func (p *prober) checkPKCS1(mechanism uint, in []byte) error {
	sig, err := p.sign(mech(mechanism, nil), p.rsa.private, in)
	if err != nil {
		return err
	}
	key, err := p.rsaPublic()
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte("probe"))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], sig) != nil {
		return errWrong
	}
	return nil
}

func (p *prober) pss() error {
	digest := sha256.Sum256([]byte("probe"))
	params := pkcs11.NewPSSParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32)
	sig, err := p.sign(mech(pkcs11.CKM_RSA_PKCS_PSS, params), p.rsa.private, digest[:])
	if err != nil {
		return err
	}
	key, err := p.rsaPublic()
	if err != nil {
		return err
	}
	if rsa.VerifyPSS(key, crypto.SHA256, digest[:], sig, &rsa.PSSOptions{SaltLength: 32}) != nil {
		return errWrong
	}
	return nil
}

func (p *prober) rsaPublic() (*rsa.PublicKey, error) {
	n, err := p.value(p.rsa.public, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, nil
}
